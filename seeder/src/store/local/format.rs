//! Which version of the layout a data directory has.
//!
//! The number lies in a file beside the database, not in it: a database with tables that this program does not know
//! does not open at all, and its own message would not say why.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use super::OpenError;

/// The file in the data directory.
pub(super) const FILE: &str = "format";
/// The version that this program writes. Directories without the file are older, and are brought up to it when opened.
const FORMAT: u32 = 2;

/// Refuses a directory that a later version of this program has written.
pub(super) fn check(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OpenError::Dir { path, error }),
    };
    match text.trim().parse::<u32>() {
        Ok(found) if found <= FORMAT => Ok(()),
        Ok(found) => Err(OpenError::Newer { path: dir.to_owned(), found, known: FORMAT }),
        Err(_) => {
            let error = io::Error::new(io::ErrorKind::InvalidData, "it should hold a number");
            Err(OpenError::Dir { path, error })
        }
    }
}

/// Records that the directory has this program's version: once all that it asks for is there.
pub(super) fn record(dir: &Path) -> Result<(), OpenError> {
    let (path, new) = (dir.join(FILE), dir.join("format.new"));
    let text = format!("{FORMAT}\n");
    if fs::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| OpenError::Dir { path: path.clone(), error })
}

#[cfg(test)]
mod tests {
    use super::{super::Local, *};

    #[test]
    fn a_directory_that_a_later_version_wrote_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        drop(Local::open(dir.path(), 0).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), "2\n");
        fs::write(dir.path().join(FILE), "3\n").unwrap();
        let error = Local::open(dir.path(), 0).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 3, .. }), "{error}");
        assert!(error.to_string().contains("a later version"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), "3\n");
        fs::write(dir.path().join(FILE), "two").unwrap();
        assert!(Local::open(dir.path(), 0).unwrap_err().to_string().contains("number"));
    }

    #[test]
    fn a_directory_from_before_there_was_a_version_opens_and_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        drop(Local::open(dir.path(), 0).unwrap());
        fs::remove_file(dir.path().join(FILE)).unwrap();
        drop(Local::open(dir.path(), 0).unwrap());
        assert!(dir.path().join(FILE).exists());
    }
}
