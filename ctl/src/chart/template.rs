//! Go templates, as far as the chart's need them.
//!
//! The chart in `deploy/helm` is the one definition of what is installed, written as Helm's users expect it. To apply it
//! without Helm, this renders the part of the template language that the chart keeps to: actions with trimming,
//! comments, `if`, `with`, `range`, `define`, `include`, pipelines, and the functions in [`functions`]. Anything else is
//! an error, and a test renders the chart with Helm itself and compares. (`gtmpl`, the crate for this language, has had
//! no release since 2021 and brings none of Helm's functions.)

mod eval;
mod functions;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

pub(crate) use functions::minor_version;

/// Parsed files, and what they define for each other.
#[derive(Debug, Default)]
pub(super) struct Templates {
    defined: BTreeMap<String, Vec<Node>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Output(Expr),
    /// The first branch whose condition holds; one without a condition always does.
    If(Vec<(Option<Expr>, Vec<Node>)>),
    With {
        value: Expr,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        /// Variables for the key or index, and for the item.
        names: Option<(String, String)>,
        over: Expr,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Expr {
    Literal(Value),
    /// `.a.b`, with no variable; `$.a.b` with the empty one; `$x.a.b`.
    Path {
        variable: Option<String>,
        fields: Vec<String>,
    },
    Call {
        function: String,
        arguments: Vec<Expr>,
    },
}

impl Templates {
    /// Adds a file, under its name.
    ///
    /// # Errors
    /// What of it is not in the part of the language that is understood, with its line.
    pub(super) fn add(&mut self, name: &str, text: &str) -> Result<()> {
        let (nodes, defines) = parse::parse(text).with_context(|| name.to_owned())?;
        self.defined.extend(defines);
        self.defined.insert(name.to_owned(), nodes);
        Ok(())
    }

    /// Renders the file `name` with `data` as its `.`.
    ///
    /// # Errors
    /// A value that is not there, or of the wrong type, with the expression that wants it.
    pub(super) fn render(&self, name: &str, data: &Value) -> Result<String> {
        eval::Renderer::new(self, data).template(name, data).with_context(|| name.to_owned())
    }
}
