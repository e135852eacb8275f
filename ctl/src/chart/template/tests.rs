use serde_json::json;

use super::Templates;

fn render(text: &str) -> Result<String, String> {
    let mut templates = Templates::default();
    let data = json!({
        "a": {"b": "x", "list": [1, 2], "map": {"k": "v", "j": 5}, "empty": [], "no": false, "zero": 0},
        "version": "v1.22.3+k3s1",
    });
    templates.add("t", text).and_then(|()| templates.render("t", &data)).map_err(|error| format!("{error:#}"))
}

#[test]
fn text_and_values_come_out_as_they_are() {
    assert_eq!(render("a: {{ .a.b }}{{/* no */}}, {{ $.a.zero }}").unwrap(), "a: x, 0");
}

#[test]
fn dashes_trim_to_the_next_text() {
    assert_eq!(render("a\n  {{- .a.b }}\n\n{{ .a.b -}}  \n b").unwrap(), "ax\n\nxb");
}

#[test]
fn branches_follow_what_go_takes_for_true() {
    let text = "{{ if .a.no }}1{{ else if .a.zero }}2{{ else }}3{{ end }}{{ if not .a.empty }}4{{ end }}";
    assert_eq!(render(text).unwrap(), "34");
    assert_eq!(render("{{ with .a.map }}{{ .k }}{{ end }}{{ with .a.empty }}1{{ else }}2{{ end }}").unwrap(), "v2");
}

#[test]
fn lists_and_mappings_are_ranged_over_in_order() {
    assert_eq!(render("{{ range .a.list }}<{{ . }}>{{ end }}").unwrap(), "<1><2>");
    assert_eq!(render("{{ range $k, $v := .a.map }}{{ $k }}={{ $v }} {{ $.a.b }};{{ end }}").unwrap(), "j=5 x;k=v x;");
}

#[test]
fn templates_include_each_other() {
    let text = "{{ define \"d\" -}}\n1: {{ .b }}\n2: y\n{{- end }}{{ include \"d\" .a | nindent 2 }}";
    assert_eq!(render(text).unwrap(), "\n  1: x\n  2: y");
    assert!(render("{{ define \"d\" }}{{ include \"d\" . }}{{ end }}{{ include \"d\" . }}").is_err());
}

#[test]
fn functions_do_as_helms() {
    assert_eq!(render("{{ toYaml .a.map | nindent 1 }}").unwrap(), "\n j: 5\n k: v");
    assert_eq!(
        render("{{ .a.zero | quote }} {{ .a.b | default \"d\" }} {{ \"\" | default .a.b }}").unwrap(),
        "\"0\" x x"
    );
    assert_eq!(render("{{ join \",\" .a.list | quote }} {{ add .a.zero 7 }}").unwrap(), "\"1,2\" 7");
    assert_eq!(render("{{ semverCompare \">=1.22-0\" .version }}").unwrap(), "true");
    assert_eq!(render("{{ (semverCompare \">=1.23-0\" .version) }}").unwrap(), "false");
}

#[test]
fn what_is_not_understood_is_an_error_with_its_line() {
    for (text, expected) in [
        ("\n\n{{ .a.c }}", "t: .a.c is not there"),
        ("\n{{ lookup .a }}", "lookup with 1 arguments is not understood"),
        ("\n\n{{ if .a }}", "line 3: if without end"),
        ("a\n{{ end }}", "line 2: {{ end }} closes nothing"),
        ("{{ .a", "line 1: {{ without }}"),
        ("{{ .a.map }}", "pass it through toYaml"),
        ("\n{{ a ; b }}", "line 2: {{ a ; b }}: `;` is not understood"),
        ("{{ semverCompare \"<1.2\" .version }}", "only >=MAJOR.MINOR-0"),
        ("{{ .a | .b }}", "only a function can come after"),
    ] {
        let error = render(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
