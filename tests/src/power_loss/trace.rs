//! What `strace -f -y` writes.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

/// Something that happened, and where the trace says so.
#[derive(Debug, Clone)]
pub struct Step {
    pub(super) event: Event,
    /// The trace's line, from 1.
    pub line: usize,
}

impl Step {
    /// What a client was told, if that was it.
    #[must_use]
    pub fn said(&self) -> Option<&[u8]> {
        if let Event::Said(bytes) = &self.event { Some(bytes) } else { None }
    }

    /// The file or directory whose sync began, if that was it.
    #[must_use]
    pub fn syncs(&self) -> Option<&Path> {
        if let Event::SyncBegin { path, .. } = &self.event { Some(path) } else { None }
    }
}

/// What a process did. Paths are relative to the directory that is looked at.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A process began.
    Start,
    /// A file was made, if it was not there, and emptied, if so asked.
    Open { path: PathBuf, create: bool, truncate: bool },
    /// Bytes were written at an offset, or at the end.
    Write { path: PathBuf, at: Option<u64>, bytes: Vec<u8> },
    /// A file's length was set.
    Truncate { path: PathBuf, len: u64 },
    /// A sync was asked for: what has been done until now will be safe when it ends.
    SyncBegin { thread: u32, path: PathBuf },
    /// That sync has ended.
    SyncEnd { thread: u32 },
    /// A name was changed.
    Rename { from: PathBuf, to: PathBuf },
    /// A name was taken away.
    Remove { path: PathBuf },
    /// A directory was made.
    MakeDir { path: PathBuf },
    /// A client was told something.
    Said(Vec<u8>),
}

/// Whether a trace is whole: its last line tells of the process's end.
pub(super) fn ended(text: &[u8]) -> bool {
    let last = text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    last.ends_with(b"+++") && text.ends_with(b"\n")
}

/// Adds a trace's steps.
pub(super) fn read(text: &[u8], root: &Path, steps: &mut Vec<Step>) -> Result<()> {
    let mut reader = Reader { root, begun: BTreeMap::new(), offsets: HashMap::new() };
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line_number = number + 1;
        let mut events = Vec::new();
        reader.line(line, &mut events).with_context(|| {
            format!("line {line_number}: {}", String::from_utf8_lossy(&line[..line.len().min(200)]))
        })?;
        steps.extend(events.into_iter().map(|event| Step { event, line: line_number }));
    }
    Ok(())
}

struct Reader<'a> {
    root: &'a Path,
    /// Calls that have begun, by thread.
    begun: BTreeMap<u32, Vec<u8>>,
    /// Where the next `write` goes, by descriptor; none at a file opened for appending.
    offsets: HashMap<String, Option<u64>>,
}

/// One argument of a call: its text without strings, and the strings in it.
#[derive(Debug, Default)]
struct Argument {
    text: String,
    strings: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Call {
    name: String,
    arguments: Vec<Argument>,
    /// What it gave; none as long as it has not ended.
    result: Option<String>,
}

impl Reader<'_> {
    fn line(&mut self, line: &[u8], events: &mut Vec<Event>) -> Result<()> {
        let Some(space) = line.iter().position(|byte| *byte == b' ') else { return Ok(()) };
        let thread: u32 = std::str::from_utf8(&line[..space])?.parse().context("a thread's id comes first")?;
        let rest = line[space..].trim_ascii_start();
        if rest.starts_with(b"+++") || rest.starts_with(b"---") {
            return Ok(());
        }
        if let Some(begun) = rest.strip_suffix(b"<unfinished ...>") {
            let begun = begun.trim_ascii_end().to_vec();
            self.began(thread, &Call::parse(&begun)?, events);
            self.begun.insert(thread, begun);
            return Ok(());
        }
        if let Some(resumed) = rest.strip_prefix(b"<... ") {
            let mut whole = self.begun.remove(&thread).context("a call is resumed that did not begin")?;
            let after = resumed.windows(8).position(|text| text == b"resumed>").context("no `resumed>`")? + 8;
            whole.extend_from_slice(&resumed[after..]);
            return self.ended(thread, &Call::parse(&whole)?, events);
        }
        let call = Call::parse(rest)?;
        self.began(thread, &call, events);
        self.ended(thread, &call, events)
    }

    /// The path of a file below the root.
    fn own(&self, path: &str) -> Option<PathBuf> {
        Path::new(path).strip_prefix(self.root).ok().map(Path::to_owned)
    }

    /// The path of an argument that is a descriptor.
    fn open(&self, call: &Call, index: usize) -> Option<PathBuf> {
        call.arguments.get(index).and_then(|argument| self.own(argument.opened()?))
    }

    /// The path of an argument that is a name, below the directory in the argument before it where it is relative.
    fn named(&self, call: &Call, index: usize) -> Result<Option<PathBuf>> {
        let name = call.arguments.get(index).and_then(|argument| argument.strings.first()).context("a name")?;
        let name = std::str::from_utf8(name).context("names are text")?;
        if name.starts_with('/') {
            return Ok(self.own(name));
        }
        let base = index.checked_sub(1).and_then(|before| call.arguments[before].opened());
        Ok(self.own(&format!("{}/{name}", base.context("a name relative to nothing that is known")?)))
    }

    fn began(&self, thread: u32, call: &Call, events: &mut Vec<Event>) {
        if matches!(call.name.as_str(), "fsync" | "fdatasync")
            && let Some(path) = self.open(call, 0)
        {
            events.push(Event::SyncBegin { thread, path });
        }
    }

    fn ended(&mut self, thread: u32, call: &Call, events: &mut Vec<Event>) -> Result<()> {
        let result = call.result.as_deref().context("the call has no result")?;
        if result.starts_with('-') || result.starts_with('?') {
            return Ok(());
        }
        match call.name.as_str() {
            "open" | "openat" | "creat" => self.opened(call, result, events)?,
            "lseek" => {
                if self.open(call, 0).is_some() {
                    self.offsets.insert(call.arguments[0].text.clone(), Some(number(result)?));
                }
            }
            "write" | "pwrite64" | "writev" | "sendto" => self.wrote(call, number(result)?, events)?,
            "fsync" | "fdatasync" => {
                if self.open(call, 0).is_some() {
                    events.push(Event::SyncEnd { thread });
                }
            }
            "rename" => self.renamed(call, (0, 1), events)?,
            "renameat" | "renameat2" => self.renamed(call, (1, 3), events)?,
            "unlink" | "rmdir" => events.extend(self.named(call, 0)?.map(|path| Event::Remove { path })),
            "unlinkat" => events.extend(self.named(call, 1)?.map(|path| Event::Remove { path })),
            "mkdir" => events.extend(self.named(call, 0)?.map(|path| Event::MakeDir { path })),
            "mkdirat" => events.extend(self.named(call, 1)?.map(|path| Event::MakeDir { path })),
            "ftruncate" => {
                let len = number(&call.arguments[1].text)?;
                events.extend(self.open(call, 0).map(|path| Event::Truncate { path, len }));
            }
            // Room that is reserved changes neither bytes nor length.
            "fallocate" if call.arguments[1].text.contains("KEEP_SIZE") => {}
            // Sends a file, and changes none.
            "close" => {}
            "sendfile" if self.open(call, 0).is_none() => {}
            "mmap" if !(call.arguments[2].text.contains("WRITE") && call.arguments[3].text.contains("SHARED")) => {}
            other => ensure!(!self.mentions(call), "what {other} does to files is not understood here"),
        }
        Ok(())
    }

    fn opened(&mut self, call: &Call, result: &str, events: &mut Vec<Event>) -> Result<()> {
        let at = usize::from(call.name == "openat");
        let Some(path) = self.named(call, at)? else { return Ok(()) };
        let flags = call.arguments.get(at + 1).map_or("", |argument| argument.text.as_str());
        ensure!(!flags.contains("O_TMPFILE"), "files without a name are not understood here");
        let offset = (!flags.contains("O_APPEND")).then_some(0);
        self.offsets.insert(result.to_owned(), offset);
        if flags.contains("O_CREAT") || flags.contains("O_TRUNC") || call.name == "creat" {
            let (create, truncate) = (flags.contains("O_CREAT"), flags.contains("O_TRUNC"));
            events.push(Event::Open { path, create, truncate });
        }
        Ok(())
    }

    fn wrote(&mut self, call: &Call, count: u64, events: &mut Vec<Event>) -> Result<()> {
        let target = &call.arguments[0].text;
        let mut bytes = call.arguments[1].strings.concat();
        let Some(path) = self.open(call, 0) else {
            if target.contains("<socket:") || target.contains("<TCP") {
                events.push(Event::Said(bytes));
            }
            return Ok(());
        };
        let count_usize = usize::try_from(count)?;
        ensure!(bytes.len() >= count_usize, "the trace shows {} of {count} bytes", bytes.len());
        bytes.truncate(count_usize);
        let at = if call.name == "pwrite64" {
            Some(number(&call.arguments[3].text)?)
        } else {
            let next = self.offsets.get_mut(target).context("where this descriptor stands is not known")?;
            let at = *next;
            *next = at.map(|at| at + count);
            at
        };
        events.push(Event::Write { path, at, bytes });
        Ok(())
    }

    fn renamed(&self, call: &Call, (from, to): (usize, usize), events: &mut Vec<Event>) -> Result<()> {
        match (self.named(call, from)?, self.named(call, to)?) {
            (Some(from), Some(to)) => events.push(Event::Rename { from, to }),
            (None, None) => {}
            _ => bail!("a name moves into the directory, or out of it"),
        }
        Ok(())
    }

    fn mentions(&self, call: &Call) -> bool {
        let root = self.root.as_os_str().as_encoded_bytes();
        let within = |bytes: &[u8]| bytes.windows(root.len()).any(|part| part == root);
        call.arguments.iter().any(|it| within(it.text.as_bytes()) || it.strings.iter().any(|text| within(text)))
    }
}

impl Argument {
    /// The path in `34</path>`.
    fn opened(&self) -> Option<&str> {
        let (_, path) = self.text.split_once('<')?;
        path.strip_suffix('>').filter(|path| path.starts_with('/') && !path.ends_with("(deleted)"))
    }
}

fn number(text: &str) -> Result<u64> {
    let digits = text.split(|other: char| !other.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().with_context(|| format!("`{text}` is not a number"))
}

impl Call {
    /// Reads `name(argument, …) = result`, or as much of it as there is.
    fn parse(text: &[u8]) -> Result<Self> {
        let open = text.iter().position(|byte| *byte == b'(').context("no call")?;
        let name = std::str::from_utf8(&text[..open])?.to_owned();
        let mut arguments = vec![Argument::default()];
        let (mut at, mut depth) = (open + 1, 0_usize);
        while let Some(&byte) = text.get(at) {
            let argument = arguments.last_mut().context("there is a first")?;
            at += 1;
            match byte {
                b'"' => {
                    let string = unescape(text, &mut at)?;
                    ensure!(!text[at..].starts_with(b"..."), "the trace cuts a string short");
                    argument.strings.push(string);
                }
                b')' if depth == 0 => {
                    let result = std::str::from_utf8(&text[at..])?.trim_start().strip_prefix('=').map(str::trim);
                    return Ok(Self { name, arguments, result: result.map(str::to_owned) });
                }
                b',' if depth == 0 => arguments.push(Argument::default()),
                b' ' if argument.text.is_empty() => {}
                _ => {
                    match byte {
                        b'[' | b'{' | b'(' | b'<' => depth += 1,
                        b']' | b'}' | b')' | b'>' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    argument.text.push(char::from(byte));
                }
            }
        }
        Ok(Self { name, arguments, result: None })
    }
}

/// Reads a C string from behind its opening quote to behind its closing one.
fn unescape(text: &[u8], at: &mut usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let byte = *text.get(*at).context("a string does not end")?;
        *at += 1;
        match byte {
            b'"' => return Ok(bytes),
            b'\\' => {
                let kind = *text.get(*at).context("a string ends in an escape")?;
                *at += 1;
                bytes.push(match kind {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    b'f' => 0x0c,
                    b'v' => 0x0b,
                    b'0'..=b'7' => {
                        let mut value = u32::from(kind - b'0');
                        for _ in 0..2 {
                            let Some(digit @ b'0'..=b'7') = text.get(*at) else { break };
                            value = value * 8 + u32::from(digit - b'0');
                            *at += 1;
                        }
                        u8::try_from(value).context("an escape of more than a byte")?
                    }
                    other => other,
                });
            }
            other => bytes.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_several_threads_are_taken_apart() {
        let text = b"7 openat(AT_FDCWD</tmp>, \"/d/a\", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 5</d/a>\n\
            7 write(5</d/a>, \"x\\0\\\"\\377\", 4 <unfinished ...>\n\
            8 fdatasync(6</d/b> <unfinished ...>\n\
            7 <... write resumed>) = 4\n\
            8 <... fdatasync resumed>) = 0\n\
            7 writev(9<socket:[1]>, [{iov_base=\"HTTP\", iov_len=4}, {iov_base=\"/1\", iov_len=2}], 2) = 6\n\
            7 unlink(\"/d/none\") = -1 ENOENT (No such file or directory)\n\
            7 +++ exited with 0 +++\n";
        assert!(ended(text));
        let mut steps = Vec::new();
        read(text, Path::new("/d"), &mut steps).unwrap();
        let told: Vec<String> = steps.iter().map(|step| format!("{} {:?}", step.line, step.event)).collect();
        assert_eq!(
            told,
            [
                "1 Open { path: \"a\", create: true, truncate: false }",
                "3 SyncBegin { thread: 8, path: \"b\" }",
                "4 Write { path: \"a\", at: Some(0), bytes: [120, 0, 34, 255] }",
                "5 SyncEnd { thread: 8 }",
                "6 Said([72, 84, 84, 80, 47, 49])",
            ]
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let mut steps = Vec::new();
        let text = b"7 link(\"/d/a\", \"/d/b\") = 0\n";
        assert!(read(text, Path::new("/d"), &mut steps).is_err());
        let cut = b"7 pwrite64(5</d/a>, \"abc\"..., 100, 0) = 100\n";
        assert!(read(cut, Path::new("/d"), &mut steps).is_err());
    }
}
