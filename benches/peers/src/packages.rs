//! Programs of others, from packages: what is installed is used, what is not is fetched into a folder and used from
//! there. Nothing is installed on the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use portreeve_load::ground::output;

/// Haraka, of npm.
const HARAKA: &str = "Haraka@3.3.4";
/// aiosmtpd, of PyPI.
const AIOSMTPD: &str = "aiosmtpd==1.4.6";

/// Folder of what was fetched; stays between runs.
pub struct Packages {
    folder: PathBuf,
}

impl Packages {
    pub fn new(folder: &Path) -> Result<Self, String> {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let folder = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self { folder })
    }

    /// A program of a Debian package: the installed one, or one that is unpacked here. Packages of mail servers
    /// exclude each other, so only one of them can be installed.
    pub fn debian(&self, package: &str, program: &str) -> Result<PathBuf, String> {
        let installed = Path::new("/").join(program);
        if installed.exists() {
            return Ok(installed);
        }
        let folder = self.folder.join(package);
        let unpacked = folder.join(program);
        if !unpacked.exists() {
            fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            output(Command::new("apt-get").args(["download", package]).current_dir(&folder))?;
            let files = fs::read_dir(&folder).map_err(|error| error.to_string())?;
            let deb =
                files.flatten().map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "deb"));
            let deb = deb.ok_or_else(|| format!("apt-get download {package}: made no file"))?;
            output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&folder))?;
        }
        let libraries = output(Command::new("ldd").arg(&unpacked)).unwrap_or_default();
        let missing: Vec<&str> = libraries.lines().filter(|line| line.contains("not found")).map(str::trim).collect();
        if missing.is_empty() { Ok(unpacked) } else { Err(format!("{package}: {}", missing.join(", "))) }
    }

    /// The folder of Haraka.
    pub fn haraka(&self) -> Result<PathBuf, String> {
        let folder = self.folder.join("haraka");
        let haraka = folder.join("node_modules/Haraka");
        if !haraka.join("bin/haraka").exists() {
            fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            fs::write(folder.join("package.json"), "{\"private\":true}\n").map_err(|error| error.to_string())?;
            let quiet = ["--no-audit", "--no-fund", "--omit=optional", "--ignore-scripts", "--silent"];
            output(Command::new("npm").arg("install").arg(HARAKA).args(quiet).current_dir(&folder))?;
        }
        Ok(haraka)
    }

    /// A folder for PYTHONPATH with aiosmtpd.
    pub fn aiosmtpd(&self) -> Result<PathBuf, String> {
        let folder = self.folder.join("aiosmtpd");
        if !folder.join("aiosmtpd").exists() {
            let mut pip = Command::new("python3");
            output(pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&folder).arg(AIOSMTPD))?;
        }
        Ok(folder)
    }
}
