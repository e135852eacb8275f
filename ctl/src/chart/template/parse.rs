//! From text to nodes.

use std::collections::BTreeMap;
use std::iter::Peekable;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Expr, Node};

type Defines = BTreeMap<String, Vec<Node>>;

/// The nodes of a file, and the templates it defines.
pub(super) fn parse(text: &str) -> Result<(Vec<Node>, Defines)> {
    let mut parser = Parser { pieces: split(text)?.into_iter(), defines: Defines::new() };
    let (nodes, end) = parser.block()?;
    match end {
        None => Ok((nodes, parser.defines)),
        Some(end) => bail!("line {}: {{{{ {} }}}} closes nothing", end.line, end.keyword),
    }
}

enum Piece {
    Text(String),
    Action { tokens: Vec<Token>, line: usize },
}

/// Cuts a text at its actions, and trims around those that ask for it.
fn split(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let (mut rest, mut line, mut trim) = (text, 1, false);
    while let Some(start) = rest.find("{{") {
        let (before, action) = rest.split_at(start);
        line += before.matches('\n').count();
        let end = action.find("}}").with_context(|| format!("line {line}: {{{{ without }}}}"))?;
        let mut inside = &action[2..end];
        let mut literal = if trim { before.trim_start() } else { before };
        if let Some(trimmed) = inside.strip_prefix('-').filter(|rest| rest.starts_with(char::is_whitespace)) {
            (inside, literal) = (trimmed, literal.trim_end());
        }
        let trimmed = inside.strip_suffix('-').filter(|rest| rest.ends_with(char::is_whitespace));
        trim = trimmed.is_some();
        pieces.push(Piece::Text(literal.to_owned()));
        let inside = trimmed.unwrap_or(inside).trim();
        if !(inside.starts_with("/*") && inside.ends_with("*/")) {
            let tokens = tokens(inside).with_context(|| format!("line {line}: {{{{ {inside} }}}}"))?;
            pieces.push(Piece::Action { tokens, line });
        }
        line += action[..end].matches('\n').count();
        rest = &action[end + 2..];
    }
    pieces.push(Piece::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
    Ok(pieces)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Literal(Value),
    Path { variable: Option<String>, fields: Vec<String> },
    Word(String),
    Sign(char),
    Assign,
}

fn tokens(action: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = action.chars().peekable();
    while let Some(&first) = chars.peek() {
        tokens.push(match first {
            _ if first.is_whitespace() => {
                chars.next();
                continue;
            }
            '|' | '(' | ')' | ',' => Token::Sign(chars.next().unwrap_or_default()),
            ':' => {
                chars.next();
                if chars.next() != Some('=') {
                    bail!("`:` without `=`");
                }
                Token::Assign
            }
            '"' => Token::Literal(string(&mut chars)?),
            '.' => Token::Path { variable: None, fields: fields(&mut chars) },
            '$' => {
                chars.next();
                Token::Path { variable: Some(word(&mut chars)), fields: fields(&mut chars) }
            }
            _ if first.is_ascii_digit() => Token::Literal(Value::from(word(&mut chars).parse::<i64>()?)),
            _ if first.is_alphabetic() => match word(&mut chars).as_str() {
                "true" => Token::Literal(Value::Bool(true)),
                "false" => Token::Literal(Value::Bool(false)),
                word => Token::Word(word.to_owned()),
            },
            other => bail!("`{other}` is not understood"),
        });
    }
    Ok(tokens)
}

fn word(chars: &mut Peekable<std::str::Chars<'_>>) -> String {
    std::iter::from_fn(|| chars.next_if(|c| c.is_alphanumeric() || *c == '_')).collect()
}

/// `.a.b`; nothing for a lone dot.
fn fields(chars: &mut Peekable<std::str::Chars<'_>>) -> Vec<String> {
    let mut fields = Vec::new();
    while chars.next_if_eq(&'.').is_some() {
        fields.extend(Some(word(chars)).filter(|field| !field.is_empty()));
    }
    fields
}

/// A string literal, with the escapes that Go and JSON share.
fn string(chars: &mut Peekable<std::str::Chars<'_>>) -> Result<Value> {
    let mut literal = String::from(chars.next().unwrap_or_default());
    loop {
        let next = chars.next().context("a string without its end")?;
        literal.push(next);
        match next {
            '"' => return serde_json::from_str(&literal).with_context(|| literal),
            '\\' => literal.extend(chars.next()),
            _ => {}
        }
    }
}

/// What ended a block: `end` or `else`.
struct End {
    keyword: String,
    rest: Vec<Token>,
    line: usize,
}

struct Parser<I> {
    pieces: I,
    defines: Defines,
}

impl<I: Iterator<Item = Piece>> Parser<I> {
    /// The nodes up to `end`, `else` or the end of the file.
    fn block(&mut self) -> Result<(Vec<Node>, Option<End>)> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (tokens, line) = match piece {
                Piece::Text(text) => {
                    nodes.extend(Some(Node::Text(text)).filter(|node| *node != Node::Text(String::new())));
                    continue;
                }
                Piece::Action { tokens, line } => (tokens, line),
            };
            let (keyword, rest) = match tokens.split_first() {
                Some((Token::Word(word), rest)) => (word.as_str(), rest),
                _ => ("", &tokens[..]),
            };
            let node = match keyword {
                "end" | "else" => {
                    return Ok((nodes, Some(End { keyword: keyword.to_owned(), rest: rest.to_vec(), line })));
                }
                "define" => self.define(rest).map(|()| None),
                "if" => self.conditional(rest).map(Some),
                "with" => self.with(rest).map(Some),
                "range" => self.range(rest).map(Some),
                _ => expression(&tokens).map(Node::Output).map(Some),
            };
            nodes.extend(node.with_context(|| format!("line {line}"))?);
        }
        Ok((nodes, None))
    }

    fn define(&mut self, tokens: &[Token]) -> Result<()> {
        let [Token::Literal(Value::String(name))] = tokens else { bail!("define wants one name") };
        let body = self.until_end()?;
        self.defines.insert(name.clone(), body);
        Ok(())
    }

    fn conditional(&mut self, condition: &[Token]) -> Result<Node> {
        let mut arms = Vec::new();
        let mut condition = Some(expression(condition)?);
        loop {
            let (body, end) = self.block()?;
            let is_last = condition.is_none();
            arms.push((condition, body));
            let end = end.context("if without end")?;
            condition = match (end.keyword.as_str(), &end.rest[..]) {
                ("end", _) => return Ok(Node::If(arms)),
                _ if is_last => bail!("else after else"),
                (_, []) => None,
                (_, [Token::Word(word), rest @ ..]) if word == "if" => Some(expression(rest)?),
                _ => bail!("else wants nothing, or if"),
            };
        }
    }

    fn with(&mut self, value: &[Token]) -> Result<Node> {
        let value = expression(value)?;
        let (body, otherwise) = self.body_and_else()?;
        Ok(Node::With { value, body, otherwise })
    }

    fn range(&mut self, tokens: &[Token]) -> Result<Node> {
        let name = |token: &Token| match token {
            Token::Path { variable: Some(name), fields } if fields.is_empty() => Some(name.clone()),
            _ => None,
        };
        let (names, over) = match tokens {
            [key, Token::Sign(','), value, Token::Assign, over @ ..] => {
                (Some(name(key).zip(name(value)).context("range wants variables before :=")?), over)
            }
            over => (None, over),
        };
        let over = expression(over)?;
        let (body, otherwise) = self.body_and_else()?;
        Ok(Node::Range { names, over, body, otherwise })
    }

    fn body_and_else(&mut self) -> Result<(Vec<Node>, Vec<Node>)> {
        let (body, end) = self.block()?;
        match end {
            None => bail!("a block without end"),
            Some(end) if end.keyword == "end" => Ok((body, Vec::new())),
            Some(_) => Ok((body, self.until_end()?)),
        }
    }

    fn until_end(&mut self) -> Result<Vec<Node>> {
        match self.block()? {
            (nodes, Some(end)) if end.keyword == "end" => Ok(nodes),
            _ => bail!("a block without end"),
        }
    }
}

/// A whole action: commands separated by `|`, each given the one before as its last argument.
fn expression(tokens: &[Token]) -> Result<Expr> {
    let mut tokens = tokens.iter().peekable();
    let expression = pipeline(&mut tokens)?;
    match tokens.next() {
        None => Ok(expression),
        Some(token) => bail!("{token:?} is not expected here"),
    }
}

type Tokens<'a> = Peekable<std::slice::Iter<'a, Token>>;

fn pipeline(tokens: &mut Tokens<'_>) -> Result<Expr> {
    let mut value = command(tokens)?;
    while tokens.next_if(|token| **token == Token::Sign('|')).is_some() {
        match command(tokens)? {
            Expr::Call { function, mut arguments } => {
                arguments.push(value);
                value = Expr::Call { function, arguments };
            }
            _ => bail!("only a function can come after `|`"),
        }
    }
    Ok(value)
}

fn command(tokens: &mut Tokens<'_>) -> Result<Expr> {
    let Some(Token::Word(function)) = tokens.peek() else {
        return operand(tokens)?.context("a value is missing");
    };
    tokens.next();
    let mut arguments = Vec::new();
    while let Some(argument) = operand(tokens)? {
        arguments.push(argument);
    }
    Ok(Expr::Call { function: function.clone(), arguments })
}

fn operand(tokens: &mut Tokens<'_>) -> Result<Option<Expr>> {
    let operand = match tokens.peek() {
        Some(Token::Literal(value)) => Expr::Literal(value.clone()),
        Some(Token::Path { variable, fields }) => Expr::Path { variable: variable.clone(), fields: fields.clone() },
        Some(Token::Sign('(')) => {
            tokens.next();
            let inner = pipeline(tokens)?;
            if tokens.next() != Some(&Token::Sign(')')) {
                bail!("( without )");
            }
            return Ok(Some(inner));
        }
        _ => return Ok(None),
    };
    tokens.next();
    Ok(Some(operand))
}
