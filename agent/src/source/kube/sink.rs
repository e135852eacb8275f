//! Where the objects of a resource go.

use tokio::sync::mpsc;

use super::definitions::Definitions;
use super::split::Cut;

/// What a resource has to say.
#[derive(Debug)]
pub(super) enum Piece {
    /// A list begins. Until it ends, what is not in it is not gone.
    Begin,
    /// Objects of the list.
    Objects(Vec<Cut>),
    /// The list ends: what was not in it is gone.
    End,
    /// Events of the watch.
    Events(Vec<Cut>),
}

/// Nobody wants the objects any more.
#[derive(Debug)]
pub(super) struct Closed;

/// Where they go.
#[derive(Debug)]
pub(super) enum Sink {
    /// To the mesh, as objects of the resource of this number.
    Mesh(usize, mpsc::Sender<(usize, Piece)>),
    /// Into the list of what is defined.
    Definitions(Definitions),
}

impl Sink {
    /// Hands a piece on; waits while whoever takes it is busy.
    pub(super) async fn send(&mut self, piece: Piece) -> Result<(), Closed> {
        match self {
            Self::Mesh(resource, to) => to.send((*resource, piece)).await.map_err(|_| Closed),
            Self::Definitions(definitions) => definitions.take(piece),
        }
    }

    /// Says that what there is may not be known.
    pub(super) fn refused(&self) {
        if let Self::Definitions(definitions) = self {
            definitions.refused();
        }
    }

    /// Says that there are no objects.
    pub(super) async fn nothing(&mut self) -> Result<(), Closed> {
        self.send(Piece::Begin).await?;
        self.send(Piece::End).await
    }
}
