//! The configuration: files, flags, what is refused.

use super::*;

fn load(args: AgentArgs, toml: &str) -> Result<Config, ConfigError> {
    let file = file::parse(toml).map_err(|error| ConfigError::Toml { path: "agent.toml".into(), error })?;
    Config::merge(&args, file, "boot")
}

fn open() -> AgentArgs {
    AgentArgs { seeder: Some("http://seeder:5000".into()), insecure_open: true, ..AgentArgs::default() }
}

/// An agent whose seeder is on its machine.
fn local() -> AgentArgs {
    AgentArgs { seeder: Some("http://127.0.0.1:5000".into()), ..AgentArgs::default() }
}

#[test]
fn a_service_account_token_goes_to_a_seeder_that_is_known_and_not_in_the_clear() {
    let joins = |config: Config| (config.join_by, config.fleet_key);
    let by = JoinBy::ServiceAccount("token".into());
    let secure = AgentArgs { seeder: Some("https://seeder".into()), ..AgentArgs::default() };
    assert_eq!(joins(load(secure, "join_jwt = \"token\"").unwrap()), (by.clone(), None));
    let known = AgentArgs { fleet_key: Some("ab".repeat(32)), ..local() };
    assert_eq!(joins(load(known, "join_jwt = \"token\"").unwrap()), (by, Some([0xab; 32])));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!("shoal-join-{}", "00".repeat(48))).unwrap();
    let both = AgentArgs {
        seeder: Some("https://seeder".into()),
        join_jwt: Some("token".into()),
        join_token_file: Some(file.path().to_owned()),
        ..AgentArgs::default()
    };
    assert!(Config::load(&both).unwrap_err().to_string().contains("a node joins by one of them"));
}

#[test]
fn one_flag_and_the_open_mode_are_enough() {
    let config = load(open(), "").unwrap();
    assert_eq!(config.seeder, Uri::from_static("http://seeder:5000"));
    assert_eq!(config.listen.registry, ["127.0.0.1:5050".parse().unwrap()]);
    assert!(config.listen.peer[0].ip().is_unspecified() && config.listen.libp2p[0].ip().is_unspecified());
    for seeder in ["http://127.0.0.1:5000", "http://localhost:5000", "http://[::1]:5000"] {
        let config = load(AgentArgs { seeder: Some(seeder.into()), ..open() }, "").unwrap();
        assert!(config.listen.peer[0].ip().is_loopback(), "{seeder}: the fleet is on this machine");
    }
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/shoal"));
    assert_eq!(config.quota_bytes, QUOTA_BYTES);
}

#[test]
fn flags_override_the_file_and_the_file_the_defaults() {
    let toml = r#"
        seeder = "http://file:1"
        insecure_open = true
        data_dir = "/srv/file"
        peers = ["0101010101010101010101010101010101010101010101010101010101010101@[::1]:99"]
        mode = "plain"
        [listen]
        peer = ["0.0.0.0:1", "[::]:1"]
        [labels]
        region = "eu"
        zone = "a"
        [store]
        quota = "10GiB"
        [registry]
        stale_max_s = 60
        hosts = ["mirror.local"]
        [limits]
        upload_bytes_per_s = 1000000
        total_bytes_per_s = "1MiB"
        disk_bytes_per_s = "3MiB"
    "#;
    let mut args = open();
    args.data_dir = Some("/srv/flag".into());
    args.zone = Some("b".into());
    args.total_rate = Some(ByteSize(2 << 20));
    args.platform = Some("linux/arm64/v8".parse().unwrap());
    let config = load(args, toml).unwrap();
    assert_eq!(config.seeder, Uri::from_static("http://seeder:5000"));
    assert_eq!(config.data_dir, PathBuf::from("/srv/flag"));
    assert_eq!(config.listen.peer.len(), 2);
    assert_eq!(config.labels.region.unwrap().as_str(), "eu");
    assert_eq!(config.labels.zone.unwrap().as_str(), "b");
    assert_eq!(config.quota_bytes, 10 << 30);
    assert_eq!(config.mode, PeerMode::Plain);
    assert_eq!((config.peers[0].host.as_str(), config.peers[0].port), ("::1", 99));
    assert_eq!(config.registry.stale_max, Duration::from_secs(60));
    assert_eq!(config.registry.platform.unwrap().to_string(), "linux/arm64/v8");
    assert_eq!(config.limits.upload_bytes_per_s, Some(1_000_000));
    assert_eq!((config.limits.total_bytes_per_s, config.limits.disk_bytes_per_s), (Some(2 << 20), Some(3 << 20)));
    assert_eq!(config.limits.client_bytes_per_s, None);
}

#[test]
fn each_mistake_is_one_line_that_names_the_key() {
    let cases = [
        (open(), "colour = 1", "agent.toml: line 1: unknown field `colour`"),
        (open(), "\n[listen]\nregistry = [\"here\"]", "agent.toml: line 3: "),
        (open(), "[limits]\npeer_connections_max = 0", "limits.peer_connections_max: must be over 0"),
        (open(), "[store]\nquota = \"10 apples\"", "agent.toml: line 2: `10 apples` is no number of bytes"),
        (open(), "peers = [\"nobody\"]", "agent.toml: line 1: `nobody` is no peer"),
        (open(), "listen.peer = []", "listen.peer: names no address"),
        (AgentArgs::default(), "insecure_open = true", "seeder: the agent needs its seeder's URL"),
        (AgentArgs { seeder: Some("seeder:5000".into()), ..open() }, "", "seeder: `seeder:5000` is no seeder URL"),
        (AgentArgs { seeder: Some("http://a/b".into()), ..open() }, "", "seeder: `http://a/b` is no seeder URL"),
        (open(), "seeder_ca = \"ca.pem\"", "seeder: certificates were given, but its URL"),
        (open(), "seeder_cert = \"node.pem\"", "seeder_cert: a certificate needs its key"),
        (open(), "join_jwt = \"token\"", "join_jwt: it would be sent in the clear"),
        (local(), "join_jwt = \"token\"", "join_jwt: without https:// nothing says who the seeder is"),
        (local(), "fleet_key = \"abc\"", "fleet_key: a fleet's root key has 64 hex digits"),
        (AgentArgs { region: Some("EU".into()), ..open() }, "", "labels.region: a label is"),
    ];
    for (args, toml, expected) in cases {
        let error = load(args, toml).unwrap_err().to_string();
        assert!(error.starts_with(expected) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_named_file_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let args = AgentArgs { config: Some(dir.path().join("none.toml")), ..open() };
    assert!(matches!(Config::load(&args), Err(ConfigError::File { .. })));
}

#[test]
fn sizes_are_read_with_their_units() {
    for (text, bytes) in [("0", 0), ("1kB", 1000), ("3 MiB", 3 << 20), ("2TiB", 2 << 40)] {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
    }
    for bad in ["", "MiB", "-1", "1.5GiB", "1 XB", "99999999999TiB"] {
        assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
    }
}

#[test]
fn the_example_holds_the_defaults() {
    let example = include_str!("../../agent.example.toml");
    let expected = load(AgentArgs { seeder: Some("http://seeder.example:5000".into()), ..open() }, "").unwrap();
    assert_eq!(load(AgentArgs::default(), example).unwrap(), expected);
}
