//! Scenarios as text: what ships is right, and what is wrong is told where.

use super::{
    Scenario,
    load::{SHIPPED, Source},
    units,
};

fn error(text: &str, settings: &[&str]) -> String {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    Source::of(text).read(&settings, |_| Ok(())).unwrap_err().to_string()
}

#[test]
fn what_ships_is_right_and_means_the_same_when_it_is_written_again() {
    for (name, _) in SHIPPED {
        let scenario = Source::find(name).unwrap().read(&[], |_| Ok(())).unwrap();
        let text = toml::to_string_pretty(&scenario).unwrap();
        let again = Source::of(&text).read(&[], |_| Ok(())).unwrap();
        assert_eq!(toml::to_string_pretty(&again).unwrap(), text, "{name}");
        let json = serde_json::to_string(&scenario).unwrap();
        let again: Scenario = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), json, "{name}");
    }
}

#[test]
fn a_setting_goes_over_the_file_and_is_named_when_it_is_wrong() {
    let source = Source::of("about = \"x\"\n[nodes]\ncount = 5\n");
    let read = |setting: &str| source.read(&[setting.to_owned()], |_| Ok(()));
    assert_eq!(read("nodes.count=7").unwrap().nodes.count, 7);
    assert_eq!(read("origin.up=1 Gb/s").unwrap().origin.up, units::Rate(125e6));
    assert_eq!(read("core.degree=9").unwrap().core["degree"], toml::Value::Integer(9));
    for (setting, says) in [
        ("nodes.count", "key=value"),
        ("nodes.count=0", "--set nodes.count=0: 0 is not within 1"),
        ("nodes.cuont=1", "cuont"),
        ("about.x=1", "about is no section"),
    ] {
        let told = error("about = \"x\"\n", &[setting]);
        assert!(told.contains(says), "{setting}: {told}");
    }
    assert!(error("about = \"x\"\n[[kinds]]\nshare = 1\n", &["kinds.share=1"]).contains("edit a copy"));
}

#[test]
fn numbers_without_a_unit_are_told_to_take_one() {
    let told = error("about = \"x\"\n\n[lan]\nrtt = 5\n", &[]);
    assert!(told.starts_with("test.toml:4: ") && told.contains("ms"), "{told}");
}
