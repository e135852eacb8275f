//! The functions of Go's templates and of Helm that the chart uses.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Calls one. `include`, which needs the other templates, is not among them.
pub(super) fn call(function: &str, arguments: &[Value]) -> Result<Value> {
    Ok(match (function, arguments) {
        ("toYaml", [value]) => {
            let yaml = serde_yaml::to_string(value).context("cannot be written as YAML")?;
            Value::String(yaml.trim_end().to_owned())
        }
        // Go writes these so that JSON may stand in HTML; outside of strings there are none.
        ("toJson", [value]) => {
            let json = value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
            Value::String(json)
        }
        ("nindent", [width, value]) => {
            let width = width.as_u64().context("nindent wants a number of spaces")?;
            let indent = " ".repeat(usize::try_from(width)?.min(80));
            let lines = text(value)?;
            Value::String(lines.lines().map(|line| format!("\n{indent}{line}")).collect())
        }
        ("quote", [value]) => Value::String(Value::String(text(value)?).to_string()),
        ("default", [fallback, value]) => if is_true(value) { value } else { fallback }.clone(),
        ("join", [Value::String(separator), Value::Array(items)]) => {
            Value::String(items.iter().map(text).collect::<Result<Vec<_>>>()?.join(separator))
        }
        ("add", numbers) => {
            Value::from(numbers.iter().map(|n| n.as_i64().context("not a number")).sum::<Result<i64>>()?)
        }
        ("not", [value]) => Value::Bool(!is_true(value)),
        ("semverCompare", [Value::String(constraint), Value::String(version)]) => {
            let least = constraint.strip_prefix(">=").and_then(|least| least.strip_suffix("-0"));
            let least = least.with_context(|| format!("{constraint:?}: only >=MAJOR.MINOR-0 is understood"))?;
            Value::Bool(minor_version(version)? >= minor_version(least)?)
        }
        _ => bail!("{function} with {} arguments is not understood", arguments.len()),
    })
}

/// `v1.30.2-eks-1` is (1, 30).
pub(crate) fn minor_version(version: &str) -> Result<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split('.').map(|number| {
        let digits = number.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u32>().ok()
    });
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => bail!("{version:?} is not a version, such as v1.30.0"),
    }
}

/// What Go takes for true: whatever is not empty or zero.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A scalar as it is printed.
pub(super) fn text(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        other => bail!("{other} cannot be printed: pass it through toYaml"),
    }
}
