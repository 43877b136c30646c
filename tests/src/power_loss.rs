//! Power loss, simulated: what a disk may hold after one, worked out from the system calls of a process.
//!
//! `strace` writes down what the process did to its files. Replayed on a [`Disk`] that knows of each change whether it
//! has been synced, that gives, for any moment, a directory as the next start might find it: all that was synced, and of the
//! rest nothing or a part. The approach is that of Pillai and others, "All File Systems Are Not Created Equal" (OSDI
//! 2014).

mod disk;
mod trace;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

pub use self::{
    disk::{Disk, Survivors},
    trace::Step,
};
use crate::wait;

/// Bytes of one write that a trace shows, at most: more than anything under test writes at once.
const WRITE_LEN_MAX: usize = 4 << 20;
/// How long the tracer may take to write its last line.
const TRACE_TIME_MAX: Duration = Duration::from_secs(30);
/// What changes files, and what would without this module's understanding it: that is refused, not overlooked.
const CALLS: &str = "open,openat,openat2,creat,close,lseek,write,pwrite64,writev,pwritev,pwritev2,sendto,sendfile,splice,\
                     copy_file_range,fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,\
                     unlinkat,mkdir,mkdirat,rmdir,truncate,ftruncate,fallocate,mmap";

/// The tracer's program.
pub const PROGRAM: &str = "strace";

/// Traces of a program's runs, in a directory.
#[derive(Debug)]
pub struct Traces {
    directory: PathBuf,
}

impl Traces {
    /// Keeps traces in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// A program that runs `program` with its arguments, as the same process, and traces it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn wrap(&self, program: &Path) -> Result<PathBuf> {
        let (wrapper, directory) = (self.directory.join("traced"), self.directory.display());
        let script = format!(
            "#!/bin/sh\nexec {PROGRAM} -D -f -y --seccomp-bpf -s {WRITE_LEN_MAX} -e trace={CALLS} \
             -o \"{directory}/trace.$(date +%s%N)\" -- '{}' \"$@\"\n",
            program.display()
        );
        fs::write(&wrapper, script).with_context(|| format!("write {}", wrapper.display()))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(wrapper)
    }

    /// All that was done below `root` and said to clients, in all runs, which have ended.
    ///
    /// # Errors
    /// A trace does not end, or shows what is not understood.
    pub async fn steps(&self, root: &Path) -> Result<Vec<Step>> {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.directory)?
            .map(|entry| Ok(entry?.path()))
            .filter(|path: &Result<PathBuf>| {
                path.as_ref().is_ok_and(|path| path.file_stem().is_some_and(|stem| stem == "trace"))
            })
            .collect::<Result<_>>()?;
        files.sort();
        let mut steps = Vec::new();
        for file in files {
            let text = wait::until("the trace's end", TRACE_TIME_MAX, || async {
                let text = fs::read(&file)?;
                Ok(trace::ended(&text).then_some(text))
            })
            .await?;
            steps.push(Step { event: trace::Event::Start, line: 0 });
            trace::read(&text, root, &mut steps).with_context(|| format!("in {}", file.display()))?;
        }
        Ok(steps)
    }
}
