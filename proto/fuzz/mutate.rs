//! A fuzzer for stable toolchains: bytes that a stranger could send are bent at random, for a while.
//!
//! It starts from a kept corpus and knows nothing of coverage; a fuzzer that does (`cargo fuzz`, nightly) shares corpora and
//! targets where there are some. What makes a target panic, or keeps it busy, is written to a file that the message names: a
//! fixed target keeps it in its corpus.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// For how long each target is fuzzed unless [`SECONDS`] says otherwise: the suite runs many at once.
const SHORT: Duration = Duration::from_millis(400);
/// The environment variable that makes it longer, and the run another each time.
const SECONDS: &str = "SHOAL_FUZZ_SECONDS";
/// Longest input: what is longer meets its reader's limit, of which the corpora have examples.
const INPUT_LEN_MAX: usize = 16 << 10;
/// Longest time for one input, on a loaded machine.
const INPUT_TIME_MAX: Duration = Duration::from_secs(5);
/// Most changes of one input.
const CHANGES_MAX: u64 = 8;
/// Numbers at which readers err: ends of integer types, and the markers of lengths in the wire's encoding.
const NUMBERS: [u64; 14] =
    [0, 1, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
/// Texts at which readers err.
const WORDS: [&str; 16] = [
    "..",
    "/",
    "%2e%2e",
    "%00",
    "\r\n",
    "\n",
    "\0",
    "sha256:",
    "\"",
    "=",
    ",",
    "0x",
    "-1",
    "99999999999999999999",
    "é",
    "[",
];

/// What is done with one input.
pub(crate) type Target = fn(&[u8]);

/// Random numbers that a seed repeats (xorshift64*).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
}

/// Replays the corpus in `dir`, then bends it, and `seeds`, for a while.
pub(crate) fn fuzz(name: &str, dir: &Path, seeds: &[Vec<u8>], target: Target) {
    let mut corpus = kept(dir);
    assert!(!corpus.is_empty(), "{name} keeps a corpus in {}", dir.display());
    corpus.extend_from_slice(seeds);
    for input in &corpus {
        one(name, target, input);
    }
    #[expect(clippy::disallowed_methods, reason = "a test has no other configuration")]
    let asked = std::env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    // The suite runs the same inputs each time as far as it gets; a longer run is another each time.
    let seed = asked.and_then(|_| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok());
    let mut rng = Rng(seed.map_or(0x5eed, |now| u64::from(now.subsec_nanos())) | 1);
    let until = Instant::now() + asked.unwrap_or(SHORT);
    let mut runs = 0u64;
    while Instant::now() < until {
        let input = bent(&mut rng, &corpus);
        one(name, target, &input);
        runs += 1;
    }
    assert!(runs > 10, "{name}: {runs} inputs are no fuzzing");
}

fn kept(dir: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.expect("a listed file").path());
    let mut files: Vec<PathBuf> = entries.collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a readable file")).collect()
}

/// Runs the target on one input; one that it does not stand is kept.
fn one(name: &str, target: Target, input: &[u8]) {
    let begun = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    let slow = begun.elapsed() > INPUT_TIME_MAX;
    if result.is_ok() && !slow {
        return;
    }
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    for byte in input {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let file = std::env::temp_dir().join(format!("shoal-fuzz-{name}-{sum:016x}"));
    std::fs::write(&file, input).expect("the temporary directory is writable");
    let note = format!("{name} does not stand {} bytes; they are kept in {}", input.len(), file.display());
    match result {
        Err(panic) => {
            std::io::Write::write_all(&mut std::io::stderr(), format!("{note}\n").as_bytes()).expect("stderr");
            resume_unwind(panic)
        }
        Ok(()) => panic!("{note}: it took {:?}", begun.elapsed()),
    }
}

/// One of the corpus with a few changes.
fn bent(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[rng.below(corpus.len())].clone();
    input.truncate(INPUT_LEN_MAX);
    for _ in 0..=rng.next() % CHANGES_MAX {
        let at = rng.below(input.len() + 1);
        let other = &corpus[rng.below(corpus.len())];
        change(rng, &mut input, at, other);
    }
    input.truncate(INPUT_LEN_MAX);
    input
}

fn change(rng: &mut Rng, input: &mut Vec<u8>, at: usize, other: &[u8]) {
    let rest = input.len() - at;
    match rng.next() % 10 {
        0 => input.truncate(at),
        1 => input.insert(at, rng.byte()),
        2 => {
            input.splice(at..at, WORDS[rng.below(WORDS.len())].bytes());
        }
        3 => {
            let from = rng.below(other.len() + 1);
            let len = rng.below((other.len() - from).min(256) + 1);
            input.splice(at..at, other[from..from + len].iter().copied());
        }
        4 => {
            let from = rng.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ if rest == 0 => {}
        5 => input[at] ^= 1 << (rng.next() % 8),
        6 => input[at] = rng.byte(),
        7 => {
            let number = NUMBERS[rng.below(NUMBERS.len())].to_le_bytes();
            let len = (1 << (rng.next() % 4)).min(rest);
            input[at..at + len].copy_from_slice(&number[..len]);
        }
        8 => {
            let len = rng.below(rest.min(64)) + 1;
            input.drain(at..at + len);
        }
        _ => {
            let len = rng.below(rest.min(64)) + 1;
            let twice = input[at..at + len].to_vec();
            input.splice(at..at, twice);
        }
    }
}
