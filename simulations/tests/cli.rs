//! The command line as people use it: what runs write, and what wrong input is told.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

fn sim(folder: &Path, args: &[&str]) -> Output {
    sim_with(folder, args, "")
}

fn sim_with(folder: &Path, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-sim"));
    command.current_dir(folder).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program can be started");
    // A command that does not read its input may be gone before it is written.
    let _ = child.stdin.take().expect("piped above").write_all(input.as_bytes());
    child.wait_with_output().expect("the program ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn good(folder: &Path, args: &[&str]) -> String {
    let output = sim(folder, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What a wrong input is told, after it ended with 64.
fn bad(folder: &Path, args: &[&str]) -> String {
    let output = sim(folder, args);
    assert_eq!(output.status.code(), Some(64), "{args:?}: {} {}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

const SMALL: &str = "--set=image.size=\"32 MiB\"";

#[test]
fn a_run_writes_all_that_it_knows_and_comes_out_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let shown = good(folder.path(), &["run", "lab", "--nodes=31", SMALL, "--out", out.to_str().unwrap()]);
    for policy in ["origin-only", "mirror-per-region", "random", "shoal", "report: file://"] {
        assert!(shown.contains(policy), "{shown}");
    }
    let summary: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["ended"], &summary["nodes_ready"]), (&"complete".into(), &31.into()));
    let nodes = fs::read_to_string(out.join("nodes.csv")).unwrap();
    assert_eq!(nodes.lines().count(), 32);
    let columns = nodes.lines().next().unwrap().split(',').count();
    assert!(nodes.lines().all(|line| line.split(',').count() == columns), "{nodes}");
    assert!(fs::read_to_string(out.join("timeline.csv")).unwrap().lines().count() > 100);
    assert_eq!(fs::read_to_string(out.join("matrix.csv")).unwrap().lines().count(), 3);
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("<svg") && report.contains("prefers-color-scheme:dark") && report.contains("@media print"));
    assert!(!report.contains("<script") && !report.contains("src=") && !report.contains("http"), "self-contained");
    let again = good(folder.path(), &["replay", out.to_str().unwrap()]);
    assert!(again.contains("the same as recorded"), "{again}");
    let same = good(folder.path(), &["compare", out.to_str().unwrap(), out.to_str().unwrap(), "--tolerance=0"]);
    assert!(same.contains("+0.0 %"), "{same}");
    // What was written as the scenario is one.
    let copy = out.join("scenario.toml");
    let other = folder.path().join("other");
    good(folder.path(), &["run", copy.to_str().unwrap(), "--policy=shoal", "--out", other.to_str().unwrap()]);
    let hash = |path: &Path| {
        let text = fs::read_to_string(path.join("summary.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["trace_hash"].clone()
    };
    assert_eq!(hash(&out), hash(&other));
}

#[test]
fn a_changed_trace_is_not_the_same_and_a_changed_figure_is_beyond_the_tolerance() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let run = |nodes: &str, out: &Path| {
        good(folder.path(), &["run", "lab", "--policy=shoal", nodes, SMALL, "--out", out.to_str().unwrap()]);
    };
    run("--nodes=8", &a);
    run("--nodes=31", &b);
    let output = sim(folder.path(), &["compare", a.to_str().unwrap(), b.to_str().unwrap(), "--tolerance=3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("all have it, s"), "{}", text(&output.stderr));
    let file = a.join("summary.json");
    let forged = fs::read_to_string(&file).unwrap().replace("\"trace_hash\": \"", "\"trace_hash\": \"f");
    fs::write(&file, forged).unwrap();
    let output = sim(folder.path(), &["replay", a.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("differs from the recorded"), "{}", text(&output.stderr));
}

#[test]
fn sweeps_cover_all_combinations_and_explanations_name_senders() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["sweep", "lab", "--over=nodes=4,8", "--over=core.degree=4,20", SMALL, "--seeds=2", "--out=s"];
    let shown = good(folder.path(), &args);
    assert!(shown.contains("nodes.count=8 core.degree=20"), "{shown}");
    assert_eq!(fs::read_to_string(folder.path().join("s/sweep.csv")).unwrap().lines().count(), 9);
    assert!(fs::read_to_string(folder.path().join("s/sweep.html")).unwrap().contains("<polygon"));
    let story = good(folder.path(), &["explain-node", "3", "lab", "--nodes=8", SMALL, "--trace=n.txt"]);
    assert!(story.contains("senders") && story.contains("<- PieceStored"), "{story}");
    assert!(fs::read_to_string(folder.path().join("n.txt")).unwrap().lines().count() > 100);
    let list = good(folder.path(), &["list"]);
    assert_eq!(list.lines().filter(|line| line.contains(" nodes  ")).count(), 11, "{list}");
}

#[test]
fn wrong_scenarios_are_told_the_line_and_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let of = |text: &str| {
        fs::write(folder.path().join("s.toml"), format!("about = \"x\"\n{text}")).unwrap();
        bad(folder.path(), &["run", "s.toml"])
    };
    for (text, says) in [
        ("[nodes]\ncuont = 3\n", vec!["s.toml:3:", "cuont", "count"]),
        ("[nodes]\nup = \"2 Gbps\"\n", vec!["s.toml:3:", "Gb/s"]),
        ("[nodes]\nup = \"-2 Gb/s\"\n", vec!["s.toml:3:", "negative"]),
        (
            "[[regions]]\nname = \"a\"\nshare = 1\n[[regions]]\nname = \"b\"\nshare = 0.0001\n",
            vec!["s.toml:7:", "no node"],
        ),
        ("[image]\nsize = \"2 GiB\"\n[nodes]\ndisk_free = \"1 GiB\"\n", vec!["s.toml:3:", "disk_free"]),
        ("[core]\ndegre = 3\n", vec!["s.toml:3:", "degre", "degree"]),
        ("[arrival]\nkind = \"sometimes\"\n", vec!["s.toml:3:", "burst", "rolling"]),
        ("[nodes]\ncount = \n", vec!["s.toml:3:"]),
        ("[origin]\nregion = \"mars\"\n", vec!["s.toml:3:", "mars"]),
    ] {
        let told = of(text);
        says.iter().for_each(|part| assert!(told.contains(part), "{text:?}: {told:?} lacks {part:?}"));
    }
    assert!(bad(folder.path(), &["run", "dc-1m"]).contains("dc-1k"));
    assert!(bad(folder.path(), &["run", "lab", "--set=nodes.up=fast"]).contains("2 Gb/s"));
    assert!(bad(folder.path(), &["run", "lab", "--epsilon=7"]).contains("within 0 and 0.5"));
    assert!(bad(folder.path(), &["explain-node", "127", "lab"]).contains("0 to 126"));
}

#[test]
fn wrong_tables_and_manifests_are_told_the_line_and_right_ones_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let csv = |text: &str| fs::write(folder.path().join("t.csv"), text).unwrap();
    for (table, says) in [
        ("", "t.csv:1: empty"),
        ("name,speed\na,1\n", "t.csv:1: there is no column \"speed\""),
        ("name\na\n", "\"region\" is missing"),
        ("region,up\nr,1 Gb/s\nr\n", "t.csv:3: 1 cells, the header has 2"),
        ("region,up\nr,-1 Gb/s\n", "t.csv:2: up: "),
        ("region,count\nr,many\n", "t.csv:2: count: "),
        ("region\n", "no node follows"),
    ] {
        csv(table);
        let told = bad(folder.path(), &["run", "lab", "--topology=t.csv"]);
        assert!(told.contains(says), "{table:?}: {told}");
    }
    for (manifest, says) in [
        ("nonsense", "is no image manifest"),
        ("{\"layers\":[]}", "has no layers"),
        ("{\"layers\":[{\"digest\":\"sha256:12\",\"size\":5}]}", "sha256:12"),
    ] {
        let output = sim_with(folder.path(), &["run", "lab", "--image=-"], manifest);
        assert_eq!(output.status.code(), Some(64));
        let told = text(&output.stderr);
        assert!(told.contains(says) && told.contains("standard input"), "{manifest:?}: {told}");
    }
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let blob = |digit: &str, size: u64| format!("{{\"digest\":\"{}\",\"size\":{size}}}", digest(digit));
    let index = format!("{{\"manifests\":[{}]}}", blob("a", 500));
    let output = sim_with(folder.path(), &["run", "lab", "--image=-"], &index);
    assert!(text(&output.stderr).contains(&digest("a")), "an index names its manifests");
    csv("name,region,count,up\nmaster,eu,1,1 Gb/s\nworker,eu,6,500 Mb/s\nedge,us,3,100 Mb/s\n");
    let manifest =
        format!("{{\"config\":{},\"layers\":[{},{}]}}", blob("a", 1000), blob("b", 9 << 20), blob("c", 5 << 20));
    let args = ["run", "lab", "--image=-", "--topology=t.csv", "--policy=shoal", "--out=o", "--set=lan.payload=1.0"];
    let output = sim_with(folder.path(), &args, &manifest);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let nodes = fs::read_to_string(folder.path().join("o/nodes.csv")).unwrap();
    assert_eq!((nodes.lines().count(), nodes.matches("worker").count(), nodes.matches(",us,").count()), (11, 6, 3));
    let summary = fs::read_to_string(folder.path().join("o/summary.json")).unwrap();
    assert!(summary.contains(&format!("\"image_bytes\": {}", 1000 + (14 << 20))), "{summary}");
    assert!(good(folder.path(), &["replay", "o"]).contains("the same as recorded"));
}

#[test]
fn fast_rates_are_warned_of_where_capacities_are_unequal() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["--nodes=8", SMALL, "--rates=fast", "--policy=shoal"];
    let warned = |scenario: &str| {
        let output = sim(folder.path(), &[&["run", scenario][..], &small].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr).contains("26 %")
    };
    fs::write(
        folder.path().join("unequal.toml"),
        "about = \"x\"\n[[kinds]]\nshare = 1\nup = \"1 Gb/s\"\n[[kinds]]\nshare = 1\nup = \"2 Gb/s\"\n",
    )
    .unwrap();
    assert!(!warned("lab") && warned("unequal.toml"));
}

#[test]
fn a_policy_that_sleeps_though_it_could_go_on_is_found_with_seed_and_time() {
    let folder = tempfile::tempdir().unwrap();
    // A policy that may ask no peer for anything: each could go on, and none does.
    let planted = ["run", "lab", "--nodes=8", "--seed=5", "--policy=shoal", "--out=o", SMALL];
    let lazy = ["--set=core.requests_base=0", "--set=core.requests_max=0"];
    let output = sim(folder.path(), &[&planted[..], &lazy[..]].concat());
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("is deadlocked (seed 5, after ") && told.contains(" simulated seconds)"), "{told}");
    assert!(told.contains("shoal-sim explain-node ") && told.contains("--seed 5"), "{told}");
    let summary = fs::read_to_string(folder.path().join("o/summary.json")).unwrap();
    assert!(summary.contains("\"ended\": \"deadlock\""), "what there is has been written");
    // One that has no room for a request at any peer could not go on either: nothing moves, and that has an end too.
    let stuck = sim(
        folder.path(),
        &[
            &planted[..],
            &["--set=core.pipeline_max=0", "--set=faults.origin_down_at=0 s"],
            &["--set=faults.origin_down_for=1 h"],
        ]
        .concat(),
    );
    assert_eq!(stuck.status.code(), Some(1), "{}", text(&stuck.stderr));
    assert!(text(&stuck.stderr).contains("nothing moves any more (seed 5"), "{}", text(&stuck.stderr));
}

#[test]
fn an_interrupted_run_writes_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-sim"));
    command.current_dir(folder.path()).args(["run", "dc-10k", "--policy=shoal", "--out=o"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // From when it catches SIGINT on; the run itself takes minutes.
    let status = format!("/proc/{}/status", child.id());
    let catches = || {
        let text = fs::read_to_string(&status).unwrap();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() & 2 != 0
    };
    while !catches() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("interrupted"), "{}", text(&output.stderr));
    let summary = fs::read_to_string(folder.path().join("o/summary.json")).unwrap();
    assert!(summary.contains("\"ended\": \"interrupted\""));
    assert!(fs::read_to_string(folder.path().join("o/report.html")).unwrap().contains("interrupted"));
}

#[test]
fn the_report_opens_in_a_browser_with_its_drawings_visible() {
    let Some(chromium) =
        ["/usr/bin/chromium", "/usr/bin/chromium-browser"].into_iter().find(|path| Path::new(path).exists())
    else {
        eprintln!("SKIPPED: no chromium here; as root on Debian: apt-get install chromium");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let args = ["run", "multi-region", "--nodes=50", SMALL, "--out=o"];
    good(folder.path(), &args);
    let page = format!("file://{}", folder.path().join("o/report.html").display());
    let browser = |more: &[&str]| {
        let mut command = Command::new(chromium);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]);
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let output = command.arg(profile).args(more).arg(&page).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let dom = browser(&["--dump-dom"]);
    for part in ["</svg>", "From region to region", "The slowest nodes", "fluid bound", "class=\"line shoal\""] {
        assert!(dom.contains(part), "the parsed page lacks {part}");
    }
    // What is drawn is seen: a page in two colour schemes and on paper is neither blank nor the same.
    let mut sizes = Vec::new();
    for (name, more) in
        [("light.png", vec![]), ("dark.png", vec!["--force-dark-mode", "--blink-settings=preferredColorScheme=0"])]
    {
        let shot = folder.path().join(name);
        let to = format!("--screenshot={}", shot.display());
        let mut args = vec![to.as_str(), "--window-size=1000,1600"];
        args.extend(more);
        browser(&args);
        let image = fs::read(&shot).unwrap();
        assert!(image.len() > 30_000, "{name} is nearly blank: {} bytes", image.len());
        sizes.push(image);
    }
    assert_ne!(sizes[0], sizes[1], "dark is not light");
    let pdf = folder.path().join("report.pdf");
    browser(&[&format!("--print-to-pdf={}", pdf.display()), "--no-pdf-header-footer"]);
    assert!(fs::read(&pdf).unwrap().starts_with(b"%PDF"));
}
