//! From nodes and values to text.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Expr, Node, Templates, functions};

/// Templates that include each other are no deeper than this.
const MAX_DEPTH: usize = 16;

pub(super) struct Renderer<'a> {
    templates: &'a Templates,
    /// `$` and the variables of `range`.
    variables: HashMap<String, Value>,
    depth: usize,
}

impl<'a> Renderer<'a> {
    pub(super) fn new(templates: &'a Templates, root: &Value) -> Self {
        Self { templates, variables: HashMap::from([(String::new(), root.clone())]), depth: 0 }
    }

    pub(super) fn template(&mut self, name: &str, dot: &Value) -> Result<String> {
        let nodes = self.templates.defined.get(name).with_context(|| format!("no template {name:?} is defined"))?;
        if self.depth == MAX_DEPTH {
            bail!("{name:?} includes itself");
        }
        self.depth += 1;
        let text = self.nodes(nodes, dot);
        self.depth -= 1;
        text
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<String> {
        let mut text = String::new();
        for node in nodes {
            match node {
                Node::Text(literal) => text.push_str(literal),
                Node::Output(expr) => text.push_str(&functions::text(&self.value(expr, dot)?)?),
                Node::If(arms) => {
                    for (condition, body) in arms {
                        let holds = match condition {
                            Some(condition) => functions::is_true(&self.value(condition, dot)?),
                            None => true,
                        };
                        if holds {
                            text.push_str(&self.nodes(body, dot)?);
                            break;
                        }
                    }
                }
                Node::With { value, body, otherwise } => {
                    let value = self.value(value, dot)?;
                    text.push_str(&match functions::is_true(&value) {
                        true => self.nodes(body, &value)?,
                        false => self.nodes(otherwise, dot)?,
                    });
                }
                Node::Range { names, over, body, otherwise } => {
                    let items = items(self.value(over, dot)?)?;
                    if items.is_empty() {
                        text.push_str(&self.nodes(otherwise, dot)?);
                    }
                    for (key, item) in items {
                        if let Some((key_name, item_name)) = names {
                            self.variables.insert(key_name.clone(), key);
                            self.variables.insert(item_name.clone(), item.clone());
                        }
                        text.push_str(&self.nodes(body, &item)?);
                    }
                }
            }
        }
        Ok(text)
    }

    fn value(&mut self, expr: &Expr, dot: &Value) -> Result<Value> {
        match expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Path { variable, fields } => {
                let start = match variable {
                    None => dot,
                    Some(name) => self.variables.get(name).with_context(|| format!("${name} is not defined"))?,
                };
                let found = fields.iter().try_fold(start, |value, field| value.get(field));
                found.cloned().with_context(|| format!(".{} is not there", fields.join(".")))
            }
            Expr::Call { function, arguments } => {
                let values = arguments.iter().map(|argument| self.value(argument, dot));
                let values = values.collect::<Result<Vec<_>>>()?;
                match (function.as_str(), &values[..]) {
                    ("include", [Value::String(name), dot]) => self.template(name, dot).map(Value::String),
                    _ => functions::call(function, &values),
                }
            }
        }
    }
}

/// Keys or indexes, and items; a mapping's in the order of its keys, as Go's.
fn items(value: Value) -> Result<Vec<(Value, Value)>> {
    match value {
        Value::Array(items) => Ok(items.into_iter().enumerate().map(|(at, item)| (Value::from(at), item)).collect()),
        Value::Object(items) => {
            let mut items: Vec<_> = items.into_iter().collect();
            items.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(items.into_iter().map(|(key, item)| (Value::String(key), item)).collect())
        }
        other => bail!("range over {other}: not a list or a mapping"),
    }
}
