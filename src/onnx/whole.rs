//! Files that are written whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use tempfile::NamedTempFile;

/// Writes a file whole or not at all: to a temporary file in the same folder, to the disk, then renamed. What is no regular
/// file, such as a pipe or `/dev/null`, is written to as it is; a symbolic link stays one, and its target is written.
///
/// # Errors
/// If the system refuses; a regular file that was there is then still there, as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Ok(there) = fs::metadata(path) {
        if !there.is_file() {
            return fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
        }
        // Links are resolved, so that the file is replaced and not the link.
        let path = fs::canonicalize(path)?;
        return replace(&path, bytes);
    }
    replace(path, bytes)
}

/// Whether [`write_whole`] could make a file here, before long work is done for it. The file itself is not touched.
///
/// # Errors
/// What the system says.
pub fn check_writable(path: &Path) -> io::Result<()> {
    temporary([b""], folder_of(path)).map(drop)
}

/// The folder that a file is in, or would be.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    temporary([bytes], folder)?.persist(path).map_err(|e| e.error)?;
    sync_folder(folder);
    Ok(())
}

/// A file with these contents, on the disk under a temporary name in a folder.
///
/// # Errors
/// If the system refuses; nothing is left then.
pub(crate) fn temporary(
    pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
    folder: &Path,
) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".basisopt-").suffix(".tmp");
    #[cfg(unix)]
    {
        // As any newly created file: the process's umask decides.
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder)?;
    let mut to = BufWriter::with_capacity(1 << 16, file.as_file());
    pieces.into_iter().try_for_each(|piece| to.write_all(piece.as_ref()))?;
    to.flush()?;
    drop(to);
    file.as_file().sync_all()?;
    Ok(file)
}

/// Renames are in the folder; where it cannot be synced, the system will do it.
pub(crate) fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        drop(folder.sync_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for text in ["one", "another"] {
            write_whole(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert!(check_writable(&path).is_ok() && check_writable(&dir.path().join("no/a")).is_err());
        assert!(write_whole(&dir.path().join("no/a"), b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay_what_they_are() {
        use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        symlink("file", &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");

        let null = Path::new("/dev/null");
        let before = fs::metadata(null).unwrap();
        write_whole(null, b"gone").unwrap();
        let after = fs::metadata(null).unwrap();
        assert!(after.file_type().is_char_device() && after.ino() == before.ino());
    }
}
