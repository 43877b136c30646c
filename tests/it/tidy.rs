//! The house rules that no compiler lint knows: they hold because this fails, not because somebody remembers.
use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

/// Longer files hold more than one thing, or one thing that nobody reads to its end.
const FILE_LINES_MAX: usize = 500;
/// Split so that this file does not hold them.
const MARKERS: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
];
const TEXT: [&str; 7] = ["rs", "toml", "md", "sh", "yaml", "yml", "service"];
/// Whatever compiles C needs one of the first two; the rest says which edge crept in.
const NOT_IN_THE_SIMULATOR: [&str; 13] = [
    "cc",
    "cmake",
    "aws-lc-sys",
    "blake3",
    "libp2p",
    "librocksdb-sys",
    "ring",
    "rocksdb",
    "shoal-agent",
    "shoal-dht",
    "shoal-http",
    "shoal-seeder",
    "tokio",
];

fn root() -> PathBuf {
    shoal_tests::clone::root().expect("tests run in their crate's folder")
}

/// Every text file of the clone with its content, what cargo and git keep for themselves left out.
fn files() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the clone can be listed") {
            let path = entry.expect("an entry of the clone can be read").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            let is_text = path.extension().is_some_and(|end| TEXT.iter().any(|text| end == *text));
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(path);
                }
            } else if is_text || name == "Makefile" || folder.ends_with(".ci") {
                let content = fs::read_to_string(&path).expect("a text file of the clone is UTF-8");
                found.push((path.strip_prefix(root()).expect("it lies in the clone").to_owned(), content));
            }
        }
    }
    assert!(found.len() > 20, "only {} files found: the walk went wrong", found.len());
    found
}

fn sources() -> impl Iterator<Item = (PathBuf, String)> {
    files().into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "rs"))
}

/// Names of the crates in `package`'s tree, itself left out.
fn tree(package: &str, more: &[&str]) -> BTreeSet<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args(["tree", "--offline", "--locked", "--prefix=none", "--format={p}", "-p", package]);
    let output = cargo.args(more).output().expect("cargo can be started");
    assert!(output.status.success(), "cargo tree -p {package}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    let names: BTreeSet<_> = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert!(names.contains(package), "cargo tree -p {package} does not name it: {text}");
    names.into_iter().filter(|name| !name.is_empty() && name != package).collect()
}

#[test]
fn no_marker_of_unfinished_work_is_left() {
    for (path, content) in files() {
        for (number, line) in content.lines().enumerate() {
            for marker in MARKERS {
                assert!(!holds_word(line, marker), "{}:{}: {marker}", path.display(), number + 1);
            }
        }
    }
}

/// Whether `word` stands in `line` by itself: a random base64 string may well hold its letters.
fn holds_word(line: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(in_word);
        let after = word.ends_with(char::is_alphabetic) && line[at + word.len()..].starts_with(in_word);
        !before && !after
    })
}

#[test]
fn a_marker_is_found_as_a_word_only() {
    assert!(holds_word("// MARK: later", "MARK") && holds_word("MARK", "MARK") && holds_word("a(mark!())", "mark!("));
    assert!(!holds_word("aMARK", "MARK") && !holds_word("MARKED", "MARK") && !holds_word("re_mark!()", "mark!("));
}

#[test]
fn no_source_file_is_too_long() {
    for (path, content) in sources() {
        let lines = content.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{}: {lines} lines, at most {FILE_LINES_MAX}", path.display());
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    for (path, content) in sources() {
        let first = content.lines().find(|line| !line.is_empty() && !line.starts_with("#!["));
        let says = first.is_some_and(|line| line.starts_with("//! "));
        assert!(says, "{}: begins with {first:?}, not with its own `//!` documentation", path.display());
    }
}

#[test]
fn the_decision_core_depends_on_the_words_and_serde_only() {
    let direct = tree("shoal-transfer", &["--depth=1", "--edges=normal,build"]);
    assert_eq!(direct, ["serde", "shoal-proto"].map(str::to_owned).into());
}

#[test]
fn the_simulator_builds_without_c_and_without_a_network_stack() {
    let all = tree("shoal-sim", &["--edges=normal,build"]);
    let wrong: Vec<_> = all.iter().filter(|name| NOT_IN_THE_SIMULATOR.contains(&name.as_str())).collect();
    assert!(wrong.is_empty(), "shoal-sim's tree holds {wrong:?}; `cargo tree -p shoal-sim -i NAME` says through whom");
}

#[test]
fn agent_and_seeder_never_depend_on_each_other() {
    assert!(!tree("shoal-agent", &["--edges=all"]).contains("shoal-seeder"));
    assert!(!tree("shoal-seeder", &["--edges=all"]).contains("shoal-agent"));
}

#[test]
fn every_test_that_the_security_page_names_is_there() {
    let page = fs::read_to_string(root().join("docs/security.md")).expect("the page");
    let named: Vec<(&str, &str)> = page.split('`').filter_map(|word| word.split_once(".rs::")).collect();
    assert!(named.len() > 20, "{} names: the page has another form", named.len());
    for (file, name) in named {
        let text = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_default();
        assert!(text.contains(&format!("fn {name}(")), "{file}.rs holds no {name}");
    }
}
