//! Our plugin at the end of someone else's list of plugins.

use serde_json::Value;

use super::json;

/// The `type` of our plugin, which is the name of its binary too.
pub const PLUGIN_TYPE: &str = "culvert-cni";

/// The largest configuration that is touched.
const MAX_BYTES: usize = 1 << 20;

/// Why a network configuration cannot be used; the runtime would pass it over too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ConflistError {
    #[error("larger than 1 MiB")]
    TooLarge,
    #[error("not JSON: {0}")]
    NotJson(String),
    #[error("not a network configuration: {0}")]
    Incomplete(&'static str),
}

/// A configuration with our plugin in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Its text; as it was if nothing had to change.
    pub text: String,
    /// Whether it was a single plugin's, which became a list: it goes to another file then.
    pub became_list: bool,
}

/// Whether a runtime takes a file of this name for a network configuration.
pub fn is_configuration(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    matches!(extension, Some("conf" | "conflist" | "json")) && !name.starts_with('.')
}

/// Whether a runtime would use this configuration, as far as can be told from its text.
///
/// # Errors
/// Why not.
pub fn check(bytes: &[u8]) -> Result<(), ConflistError> {
    read(bytes).map(|_| ())
}

/// Puts `entry`, the JSON object of our plugin, behind the plugins of a configuration, in place of an earlier one of
/// ours.
///
/// # Errors
/// When the configuration cannot be used.
pub fn merge(bytes: &[u8], entry: &str) -> Result<Merged, ConflistError> {
    let (text, plugins) = read(bytes)?;
    let Some(plugins) = plugins else {
        return Ok(Merged { text: list_of(text, entry), became_list: true });
    };
    let is_whole = |last: &Plugin| last.is_ours() && text.get(last.range.clone()) == Some(entry);
    if plugins.iter().filter(|plugin| plugin.is_ours()).count() == 1 && plugins.last().is_some_and(is_whole) {
        return Ok(Merged { text: text.to_owned(), became_list: false });
    }
    let mut text = without_ours(text, &plugins);
    let plugins = read(text.as_bytes())?.1.unwrap_or_default();
    let last = plugins.last().ok_or(ConflistError::Incomplete("`plugins` is empty"))?;
    // Laid out like the one before.
    let before = text.get(..last.range.start).unwrap_or_default();
    let indent = before.get(before.trim_end().len()..).unwrap_or_default().to_owned();
    text.insert_str(last.range.end, &format!(",{indent}{entry}"));
    Ok(Merged { text, became_list: false })
}

/// Takes our plugin out of a configuration; `None` if it is not in there.
///
/// # Errors
/// When the configuration cannot be used.
pub fn unmerge(bytes: &[u8]) -> Result<Option<String>, ConflistError> {
    let (text, plugins) = read(bytes)?;
    let plugins = plugins.unwrap_or_default();
    Ok(plugins.iter().any(Plugin::is_ours).then(|| without_ours(text, &plugins)))
}

struct Plugin {
    range: std::ops::Range<usize>,
    kind: String,
}

impl Plugin {
    fn is_ours(&self) -> bool {
        self.kind == PLUGIN_TYPE
    }
}

/// The text and its plugins; no plugins for a configuration that is a single plugin's.
fn read(bytes: &[u8]) -> Result<(&str, Option<Vec<Plugin>>), ConflistError> {
    if bytes.len() > MAX_BYTES {
        return Err(ConflistError::TooLarge);
    }
    let incomplete = ConflistError::Incomplete;
    let text = std::str::from_utf8(bytes).map_err(|error| ConflistError::NotJson(error.to_string()))?;
    let value: Value = serde_json::from_str(text).map_err(|error| ConflistError::NotJson(error.to_string()))?;
    let value = value.as_object().ok_or(incomplete("not an object"))?;
    if value.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(incomplete("`name` is missing"));
    }
    let Some(plugins) = value.get("plugins") else {
        return match value.get("type").and_then(Value::as_str) {
            Some(_) => Ok((text, None)),
            None => Err(incomplete("neither `plugins` nor `type` is there")),
        };
    };
    let plugins = plugins.as_array().ok_or(incomplete("`plugins` is not a list"))?;
    let kind = |plugin: &Value| plugin.get("type").and_then(Value::as_str).map(str::to_owned);
    let kinds: Vec<String> =
        plugins.iter().map(kind).collect::<Option<_>>().ok_or(incomplete("a plugin has no `type`"))?;
    if kinds.iter().all(|kind| kind == PLUGIN_TYPE) {
        return Err(incomplete("`plugins` is empty"));
    }
    let ranges = json::member(text, "plugins").and_then(|range| json::elements(text, range)).unwrap_or_default();
    let plugins = ranges.into_iter().zip(kinds).map(|(range, kind)| Plugin { range, kind });
    Ok((text, Some(plugins.collect())))
}

fn without_ours(text: &str, plugins: &[Plugin]) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut from = 0;
    let mut previous: Option<&Plugin> = None;
    for (at, plugin) in plugins.iter().enumerate() {
        if !plugin.is_ours() {
            previous = Some(plugin);
            continue;
        }
        // With the comma before it; the first ones with the comma after them.
        let span = match (previous, plugins.get(at + 1)) {
            (Some(previous), _) => previous.range.end.max(from)..plugin.range.end,
            (None, Some(next)) => plugin.range.start..next.range.start,
            (None, None) => plugin.range.clone(),
        };
        kept.push_str(text.get(from..span.start).unwrap_or_default());
        from = span.end;
    }
    kept.push_str(text.get(from..).unwrap_or_default());
    kept
}

/// A list of the single plugin whose configuration is `text`, and ours.
fn list_of(text: &str, entry: &str) -> String {
    let same = |key: &str| {
        let value = json::member(text, key).and_then(|range| text.get(range))?;
        Some(format!("  \"{key}\": {value},\n"))
    };
    let head: String = ["cniVersion", "name"].into_iter().filter_map(same).collect();
    format!("{{\n{head}  \"plugins\": [\n    {},\n    {entry}\n  ]\n}}\n", text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"type":"culvert-cni","socket":"/run/culvert/cni.sock"}"#;

    const PRETTY: &str = r#"{
  "cniVersion": "0.3.1",
  "name": "k8s-pod-network",
  "plugins": [
    {
      "type": "calico",
      "mtu": 1.50e3
    },
    {
      "type": "portmap"
    }
  ]
}
"#;
    const PRETTY_MERGED: &str = r#"{
  "cniVersion": "0.3.1",
  "name": "k8s-pod-network",
  "plugins": [
    {
      "type": "calico",
      "mtu": 1.50e3
    },
    {
      "type": "portmap"
    },
    {"type":"culvert-cni","socket":"/run/culvert/cni.sock"}
  ]
}
"#;
    const COMPACT: &str = r#"{"name":"k","plugins":[{"type":"bridge","x":[1,{"plugins":[]}]}],"cniVersion":"1.0.0"}"#;

    fn merged(text: &str) -> String {
        let merged = merge(text.as_bytes(), ENTRY).unwrap();
        assert!(!merged.became_list);
        merged.text
    }

    #[test]
    fn our_plugin_goes_last_and_leaves_the_rest_as_it_was_written() {
        assert_eq!(merged(PRETTY), PRETTY_MERGED);
        assert_eq!(
            merged(COMPACT),
            format!(
                r#"{{"name":"k","plugins":[{{"type":"bridge","x":[1,{{"plugins":[]}}]}},{ENTRY}],"cniVersion":"1.0.0"}}"#
            )
        );
    }

    #[test]
    fn merging_twice_changes_nothing_and_a_changed_entry_takes_the_old_ones_place() {
        for text in [PRETTY, COMPACT] {
            let once = merged(text);
            assert_eq!(merged(&once), once);
            let other = r#"{"type":"culvert-cni","socket":"/elsewhere"}"#;
            let moved = merge(once.as_bytes(), other).unwrap().text;
            assert_eq!(moved, once.replace(ENTRY, other));
        }
        // Someone put a plugin behind ours, or ours twice.
        let expected = format!(r#"{{"name":"k","plugins":[{{"type":"a"}},{{"type":"b"}},{ENTRY}]}}"#);
        for plugins in [
            format!(r#"{ENTRY},{{"type":"a"}},{ENTRY},{{"type":"b"}}"#),
            format!(r#"{{"type":"a"}},{ENTRY},{ENTRY},{{"type":"b"}}"#),
            format!(r#"{ENTRY},{ENTRY},{{"type":"a"}},{{"type":"b"}},{ENTRY},{ENTRY}"#),
        ] {
            assert_eq!(merged(&format!(r#"{{"name":"k","plugins":[{plugins}]}}"#)), expected);
        }
    }

    #[test]
    fn taking_it_out_gives_the_original_back() {
        for text in [PRETTY, COMPACT] {
            assert_eq!(unmerge(merged(text).as_bytes()).unwrap().as_deref(), Some(text));
            assert_eq!(unmerge(text.as_bytes()).unwrap(), None);
        }
        let first = format!(r#"{{"name":"k","plugins":[ {ENTRY} , {{"type":"a"}} ]}}"#);
        assert_eq!(unmerge(first.as_bytes()).unwrap().unwrap(), r#"{"name":"k","plugins":[ {"type":"a"} ]}"#);
    }

    #[test]
    fn a_single_plugin_becomes_a_list_that_holds_it_as_it_was() {
        let single = "{\n \"cniVersion\": \"0.4.0\", \"name\": \"net\",\n \"type\": \"bridge\" }\n";
        let merged = merge(single.as_bytes(), ENTRY).unwrap();
        assert!(merged.became_list);
        let plugins = format!("  \"plugins\": [\n    {},\n    {ENTRY}\n  ]\n", single.trim());
        assert_eq!(merged.text, format!("{{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"net\",\n{plugins}}}\n"));
        assert!(!merge(merged.text.as_bytes(), ENTRY).unwrap().became_list);
    }

    #[test]
    fn what_the_runtime_would_pass_over_is_refused() {
        for (text, says) in [
            ("", "not JSON"),
            ("{\"name\": \"k\", \"plugins\": [}", "not JSON"),
            ("[]", "not an object"),
            ("{\"plugins\": [{\"type\": \"a\"}]}", "`name`"),
            ("{\"name\": \"k\"}", "neither"),
            ("{\"name\": \"k\", \"plugins\": {}}", "not a list"),
            ("{\"name\": \"k\", \"plugins\": []}", "empty"),
            ("{\"name\": \"k\", \"plugins\": [{\"type\": \"culvert-cni\"}]}", "empty"),
            ("{\"name\": \"k\", \"plugins\": [{}]}", "no `type`"),
        ] {
            let error = merge(text.as_bytes(), ENTRY).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(check(text.as_bytes()).is_err() && unmerge(text.as_bytes()).is_err());
        }
        assert_eq!(check(&[b' '; (1 << 20) + 1]), Err(ConflistError::TooLarge));
    }

    #[test]
    fn runtimes_read_three_kinds_of_files() {
        for (name, expected) in [
            ("10-a.conf", true),
            ("10-a.conflist", true),
            ("a.json", true),
            ("a.conflist.bak", false),
            ("culvert-cni.kubeconfig", false),
            (".a.conflist", false),
            ("conf", false),
        ] {
            assert_eq!(is_configuration(name), expected, "{name}");
        }
    }
}
