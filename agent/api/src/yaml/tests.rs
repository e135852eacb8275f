use super::*;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n";

fn places(parsed: &Parsed) -> Vec<(Gravity, u64, u64)> {
    parsed.mistakes.iter().map(|m| (m.gravity, m.place.line, m.place.column)).collect()
}

fn names(parsed: &Parsed) -> Vec<String> {
    parsed.objects.iter().map(|(object, _)| object.reference().to_string()).collect()
}

#[test]
fn several_documents_are_read_and_know_their_lines() {
    let parsed = parse(format!("# comment\n---\n{POD}---\n\n---\n{}", POD.replace(": a", ": b")).as_bytes());
    assert_eq!(parsed.mistakes, []);
    assert_eq!(names(&parsed), ["Pod default/a", "Pod default/b"]);
    assert_eq!(parsed.objects[1].1.line, 10);
}

#[test]
fn a_broken_document_does_not_drop_the_others() {
    let parsed = parse(format!("{POD}---\na: [1\nb: }}\n---\n{}", POD.replace(": a", ": b")).as_bytes());
    assert_eq!(names(&parsed), ["Pod default/a", "Pod default/b"]);
    assert!(parsed.is_broken());
    assert!((6..=8).contains(&parsed.mistakes[0].place.line), "{:?}", parsed.mistakes);
}

#[test]
fn an_unknown_field_has_a_line() {
    let parsed = parse(format!("---\n{POD}  labls: {{}}\nspec:\n  nodename: x\n").as_bytes());
    assert_eq!(places(&parsed), [(Gravity::UnknownField, 6, 10), (Gravity::UnknownField, 8, 13)]);
    assert!(parsed.mistakes[1].message.contains("Pod default/a: unknown field spec.nodename"));
    assert_eq!(parsed.objects.len(), 1);
}

#[test]
fn a_wrong_type_has_a_line() {
    let text = format!("{POD}spec:\n  containers:\n  - name: c\n    ports: 80\n");
    let parsed = parse(text.as_bytes());
    assert_eq!(places(&parsed), [(Gravity::Broken, 8, 12)]);
    assert!(parsed.mistakes[0].message.contains("spec.containers[0].ports"), "{:?}", parsed.mistakes);
}

#[test]
fn an_unknown_kind_is_left_out_and_named() {
    let parsed = parse(format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\n---\n{POD}").as_bytes());
    assert_eq!(places(&parsed), [(Gravity::LeftOut, 2, 7)]);
    assert!(parsed.mistakes[0].message.contains("Deployment of apps/v1"), "{:?}", parsed.mistakes);
    assert_eq!(parsed.objects.len(), 1);
}

#[test]
fn a_duplicate_key_is_refused_with_its_line() {
    let parsed = parse(format!("{POD}kind: Node\n").as_bytes());
    assert_eq!(places(&parsed), [(Gravity::Broken, 5, 1)]);
}

#[test]
fn a_tab_is_refused_with_the_cure() {
    let parsed = parse(b"apiVersion: v1\nkind: Pod\nmetadata:\n\tname: a\n");
    assert_eq!(parsed.mistakes.len(), 1);
    assert!(parsed.mistakes[0].message.contains("indent with spaces"), "{:?}", parsed.mistakes);
}

#[test]
fn a_mistake_is_one_clean_line_that_tells_its_place() {
    for (text, place, says) in [
        ("a: [1", "1:4: ", "unclosed bracket '['"),
        ("a: 'it", "1:4: ", "unclosed quote"),
        ("a: 1\nb: 2\na: 3\n", "3:1: ", "duplicate mapping key: a: remove one of them"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {\"node\\nname\": \"x\\ty\"}\n",
            "4:",
            "spec.node\\nname",
        ),
        ("apiVersion: v1\nkind: \"P\\u001b[31m'd\"\nmetadata: {name: a}\n", "2:7: ", "P\\u{1b}[31m'd of v1"),
    ] {
        let parsed = parse(text.as_bytes());
        let said = parsed.mistakes[0].to_string();
        assert!(said.starts_with(place) && said.contains(says), "{text:?}: {said}");
        assert!(!said.contains(char::is_control) && !said.contains("\\'"), "{said:?}");
    }
}

#[test]
fn a_file_over_the_limit_is_refused_in_one_line() {
    let parsed = parse(&vec![b'#'; 10 << 20]);
    assert_eq!(places(&parsed), [(Gravity::Broken, 1, 1)]);
}

#[test]
fn a_binary_file_is_refused_in_one_line() {
    let parsed = parse(b"a: b\n\x7fELF\xff\xfe\x00\x01");
    assert_eq!(places(&parsed), [(Gravity::Broken, 2, 1)]);
    assert_eq!(parse(b"\0\0\0\0").mistakes.len(), 1);
}

#[test]
fn an_empty_file_holds_nothing() {
    for text in ["", "\n", "# c\n", "---\n", "---\n---\n# x\n...\n", "\u{feff}", "null\n"] {
        let parsed = parse(text.as_bytes());
        assert!(parsed.objects.is_empty() && parsed.mistakes.is_empty(), "{text:?}: {:?}", parsed.mistakes);
    }
}

#[test]
fn deep_nesting_is_refused() {
    for text in ["[".repeat(100_000), "{a: ".repeat(10_000), "- ".repeat(10_000)] {
        assert!(parse(text.as_bytes()).is_broken());
    }
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..20 {
        let reference = format!("*a{}", level - 1);
        text += &format!("a{level}: &a{level} [{}]\n", vec![reference; 10].join(","));
    }
    assert!(parse(text.as_bytes()).is_broken());
}

#[test]
fn the_items_of_a_list_are_objects() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n";
    assert_eq!(names(&parse(text.as_bytes())), ["Pod default/a"]);
    let text = "apiVersion: v1\nkind: PodList\nmetadata: {}\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n";
    let parsed = parse(text.as_bytes());
    assert_eq!((names(&parsed).len(), parsed.objects[1].1.line), (2, 6));
}

#[test]
fn an_object_that_is_there_twice_counts_once() {
    let parsed = parse(format!("{POD}---\n{POD}").as_bytes());
    assert_eq!(places(&parsed), [(Gravity::LeftOut, 6, 1)]);
    assert_eq!(parsed.objects.len(), 1);
}

#[test]
fn a_dot_in_a_key_does_not_hide_its_line() {
    let text = format!("{POD}  annotations:\n    istio.io/dry-run: true\n");
    assert_eq!(places(&parse(text.as_bytes())), [(Gravity::Broken, 6, 23)]);
}

#[test]
fn what_is_no_object_is_refused() {
    for text in ["just text", "- a\n- b\n", "a: 1\n", "42\n"] {
        assert!(parse(text.as_bytes()).is_broken(), "{text:?}");
    }
}

#[test]
fn numbers_as_keys_are_names() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\n\
                spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {8080: {mode: DISABLE}}}\n";
    let parsed = parse(text.as_bytes());
    assert_eq!(parsed.mistakes, []);
}

#[test]
fn a_file_full_of_mistakes_is_still_seen_to_be_broken() {
    let mut text = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n".repeat(MAX_MISTAKES);
    assert!(!parse(text.as_bytes()).is_broken());
    text.push_str("---\nkind: [\n");
    let parsed = parse(text.as_bytes());
    assert!(parsed.is_broken());
    assert_eq!(parsed.mistakes.len(), MAX_MISTAKES);
}
