//! Where the binaries under test are.

use std::{path::PathBuf, process::Command, sync::OnceLock};

use anyhow::{Context, Result, ensure};

/// Names a directory that holds the binaries ready-made; nothing is built then.
const DIRECTORY: &str = "SHOAL_BIN_DIR";

/// The binaries under test.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `shoal-seeder`.
    pub seeder: PathBuf,
    /// `shoal`.
    pub agent: PathBuf,
    /// `shoal-crowd`.
    pub crowd: PathBuf,
}

impl Binaries {
    /// Those in `$SHOAL_BIN_DIR` where it is set, else those of this build's target directory, brought up to date by
    /// cargo first: cargo does not build another package's binaries for a test, and a stale one would be tested in
    /// silence.
    ///
    /// # Errors
    /// They are not there, or do not build.
    pub fn find() -> Result<Self> {
        static FOUND: OnceLock<Result<Binaries, String>> = OnceLock::new();
        FOUND.get_or_init(|| Self::look().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
    }

    #[expect(clippy::disallowed_methods, reason = "the harness is told by its environment, like cargo itself")]
    fn look() -> Result<Self> {
        let directory = match std::env::var_os(DIRECTORY) {
            Some(directory) => PathBuf::from(directory),
            None => {
                build()?;
                let own = std::env::current_exe().context("where this program lies")?;
                let mut directories = own.ancestors().skip(1);
                // target/debug/shoal-demo or target/debug/deps/it-….
                let directory = directories.find(|path| !path.ends_with("deps")).context("target directory")?;
                directory.to_owned()
            }
        };
        let found = Self {
            seeder: directory.join("shoal-seeder"),
            agent: directory.join("shoal"),
            crowd: directory.join("shoal-crowd"),
        };
        for path in [&found.seeder, &found.agent, &found.crowd] {
            ensure!(path.exists(), "{} is missing; build it with `cargo build --workspace --bins`", path.display());
        }
        Ok(found)
    }
}

#[expect(clippy::disallowed_methods, reason = "cargo tells its children where it is by the environment")]
fn build() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--bins"])
        .current_dir(crate::clone::root()?)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "the binaries under test do not build");
    Ok(())
}
