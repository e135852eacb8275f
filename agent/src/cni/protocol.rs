//! What plugin and agent say to each other: one request and one answer on each connection, both JSON behind its length.

use std::io::{self, Read, Write};
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The version of these messages; the plugin of another version is installed by another agent.
pub(super) const VERSION: u32 = 1;
/// The longest message, in bytes; a GC of a thousand sandboxes fits.
pub(super) const MAX_MESSAGE: usize = 256 << 10;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    /// [`VERSION`].
    pub(super) version: u32,
    /// What about.
    #[serde(flatten)]
    pub(super) command: Command,
}

/// The commands of the CNI specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase")]
pub(super) enum Command {
    /// A sandbox has its network: may its pod start?
    Add(Attachment),
    /// Is all of it still in place?
    Check(Attachment),
    /// A sandbox is taken down.
    Del(Attachment),
    /// These sandboxes, by container ID, are all that there are.
    #[serde(rename_all = "camelCase")]
    Gc {
        /// The container IDs.
        valid: Vec<String>,
    },
    /// Is there anyone?
    Status,
}

impl Command {
    /// Its name, for metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Check(_) => "CHECK",
            Self::Del(_) => "DEL",
            Self::Gc { .. } => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// A sandbox as the runtime describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Attachment {
    /// The sandbox's ID (`CNI_CONTAINERID`).
    pub(super) container_id: String,
    /// Its network namespace's path (`CNI_NETNS`); a DEL may come without.
    pub(super) netns: Option<String>,
    /// The pod's namespace (`K8S_POD_NAMESPACE`).
    pub(super) namespace: String,
    /// The pod's name (`K8S_POD_NAME`).
    pub(super) name: String,
    /// The pod's UID (`K8S_POD_UID`), from runtimes that tell it.
    pub(super) uid: Option<String>,
    /// The addresses that the plugins before gave it.
    pub(super) addresses: Vec<IpAddr>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub(super) enum Answer {
    /// The pod is captured, served, and has its certificate.
    Enrolled,
    /// The pod does not belong to the mesh.
    NotInMesh {
        /// Why.
        reason: String,
    },
    /// Noted.
    Done,
    /// The pod belongs to the mesh and could not be taken in: it must not start.
    Refused {
        /// Why, and the cure.
        reason: String,
    },
    /// The request is not one.
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
}

impl Answer {
    /// Its name, for metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::NotInMesh { .. } => "not_in_mesh",
            Self::Done => "done",
            Self::Refused { .. } => "refused",
            Self::Invalid { .. } => "invalid",
        }
    }
}

/// Writes a message.
pub(super) fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// Reads a message.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut bytes = vec![0; check(length)?];
    from.read_exact(&mut bytes)?;
    decode(&bytes)
}

/// Writes a message.
pub(super) async fn send(to: &mut (impl AsyncWriteExt + Unpin), message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?).await
}

/// Reads a message.
pub(super) async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncReadExt + Unpin)) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut bytes = vec![0; check(length)?];
    from.read_exact(&mut bytes).await?;
    decode(&bytes)
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).ok().filter(|length| *length as usize <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the message is too long"))?;
    Ok([&length.to_be_bytes()[..], &json].concat())
}

fn check(length: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(length) as usize;
    match length {
        1..=MAX_MESSAGE => Ok(length),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes"))),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            container_id: "c1".to_owned(),
            netns: Some("/run/netns/cni-1".to_owned()),
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            uid: None,
            addresses: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        }
    }

    #[tokio::test]
    async fn every_message_survives_the_socket() {
        let gc = Command::Gc { valid: vec!["a".to_owned()] };
        for command in [Command::Add(attachment()), Command::Del(attachment()), gc, Command::Status] {
            let request = Request { version: VERSION, command };
            let mut bytes = Vec::new();
            write(&mut bytes, &request).unwrap();
            assert_eq!(read::<Request>(&mut bytes.as_slice()).unwrap(), request);
            assert_eq!(receive::<Request>(&mut bytes.as_slice()).await.unwrap(), request);
        }
        let reason = "why".to_owned();
        for answer in [Answer::Enrolled, Answer::Done, Answer::Refused { reason }] {
            let mut bytes = Vec::new();
            send(&mut bytes, &answer).await.unwrap();
            assert_eq!(read::<Answer>(&mut bytes.as_slice()).unwrap(), answer);
        }
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_read() {
        for length in [0, MAX_MESSAGE as u32 + 1, u32::MAX] {
            let error = read::<Answer>(&mut length.to_be_bytes().as_slice()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
        }
        assert!(write(&mut Vec::new(), &"x".repeat(MAX_MESSAGE)).is_err());
        assert!(read::<Answer>(&mut [0, 0, 0, 2, b'{'].as_slice()).is_err());
    }
}
