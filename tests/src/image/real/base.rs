//! The base layer: something that a container can be started from.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Packed, pack};

/// Programs of the small base; those that are missing are left out, but for the shell.
const PROGRAMS: [&str; 8] =
    ["/bin/sh", "/bin/cat", "/bin/echo", "/bin/ls", "/bin/sha256sum", "/bin/true", "/usr/bin/env", "/bin/sleep"];
/// A mirror that takes longer is not waited for: the small base does as well.
const DEBOOTSTRAP_TIME_MAX: Duration = Duration::from_secs(300);
/// Between two looks whether `debootstrap` has ended.
const LOOK: Duration = Duration::from_millis(200);

/// Packs the base layer.
pub(super) fn pack(directory: &Path, debootstrap: bool, say: &dyn Fn(&str)) -> Result<Packed> {
    let root = directory.join("root");
    let mut what = None;
    if debootstrap && let Some(program) = debootstrap_program() {
        say("debootstrap: making a minimal Debian root (once; about a minute)");
        match run_debootstrap(&program, &root) {
            Ok(suite) => what = Some(format!("debootstrap --variant=minbase {suite}")),
            Err(error) => {
                say(&format!("debootstrap did not work ({error:#}); a small base is made of this machine's programs"))
            }
        }
    }
    let what = if let Some(what) = what {
        what
    } else {
        if root.exists() {
            std::fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
        }
        own_programs(&root)?;
        "a shell and a few programs of this machine".to_owned()
    };
    say("packing layer 1 (the base)");
    let arguments = [
        format!("--directory={}", root.display()),
        "--sort=name".into(),
        "--exclude=./var/cache/apt/*".into(),
        "--exclude=./var/lib/apt/lists/*".into(),
        "--exclude=./dev/*".into(),
        "--exclude=./proc/*".into(),
        "--exclude=./sys/*".into(),
        ".".into(),
    ];
    pack::pack(directory, "layer-0.tar.gz", &what, &arguments.map(OsString::from), Vec::new())
}

fn debootstrap_program() -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    ["/usr/sbin/debootstrap", "/usr/bin/debootstrap"].map(PathBuf::from).into_iter().find(|path| root && path.exists())
}

fn run_debootstrap(program: &Path, root: &Path) -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.context("/etc/os-release names no suite")?.trim_matches('"').to_owned();
    let mut child = Command::new(program)
        .args(["--variant=minbase", &suite])
        .arg(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start debootstrap")?;
    let deadline = Instant::now() + DEBOOTSTRAP_TIME_MAX;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "it ended with {status}");
            return Ok(suite);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("it took longer than {DEBOOTSTRAP_TIME_MAX:?}");
        }
        std::thread::sleep(LOOK);
    }
}

/// A root of this machine's shell, a few programs and what `ldd` says that they load.
fn own_programs(root: &Path) -> Result<()> {
    std::fs::create_dir_all(root.join("tmp"))?;
    for directory in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(root.join("usr").join(directory))?;
        std::os::unix::fs::symlink(Path::new("usr").join(directory), root.join(directory))?;
    }
    let mut files = BTreeSet::new();
    for program in PROGRAMS.iter().filter(|program| Path::new(program).exists()) {
        files.insert(PathBuf::from(program));
        files.extend(libraries(program)?);
    }
    ensure!(files.contains(Path::new("/bin/sh")), "this machine has no /bin/sh");
    for file in files {
        let inside = root.join(file.strip_prefix("/").unwrap_or(&file));
        let parent = inside.parent().context("a file lies in a directory")?;
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        std::fs::copy(&file, &inside).with_context(|| format!("copy {}", file.display()))?;
    }
    std::fs::create_dir_all(root.join("etc"))?;
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

/// The libraries and the loader of a program, as `ldd` prints them; none for a static one.
fn libraries(program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let path_in = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path_in).collect())
}
