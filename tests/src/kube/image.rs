//! Small images for containerd, out of files: no registry, no Docker.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The root file system of an image, being filled.
#[derive(Debug)]
pub struct Image {
    directory: PathBuf,
}

impl Image {
    /// Empty, in this directory, which must not exist.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory.join("root")).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self { directory: directory.to_path_buf() })
    }

    /// A small system: busybox under all its names.
    ///
    /// # Errors
    /// When it is not there.
    pub fn add_busybox(&self, busybox: &Path) -> Result<()> {
        self.add(busybox, "bin/busybox")?;
        let listed = Command::new(busybox).arg("--list").output().context("cannot run busybox")?;
        for name in String::from_utf8_lossy(&listed.stdout).lines().filter(|name| *name != "busybox") {
            symlink("busybox", self.path("bin").join(name))?;
        }
        for directory in ["etc", "tmp", "www"] {
            fs::create_dir_all(self.path(directory))?;
        }
        self.write("etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
    }

    /// A copy of a file.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn add(&self, file: &Path, path: &str) -> Result<()> {
        let to = self.path(path);
        fs::create_dir_all(to.parent().context("a path in an image")?)?;
        fs::copy(file, &to).with_context(|| format!("cannot copy {}", file.display())).map(drop)
    }

    /// A program and the libraries it is linked with.
    ///
    /// # Errors
    /// When one is not there.
    pub fn add_program(&self, program: &Path, path: &str) -> Result<()> {
        self.add(program, path)?;
        // A static program has none: ldd fails, and that is the answer.
        let listed = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            self.add(Path::new(library), library.trim_start_matches('/'))?;
        }
        Ok(())
    }

    /// A file with this text.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let to = self.path(path);
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))
    }

    /// An OCI archive of one layer, for `ctr images import`.
    ///
    /// # Errors
    /// When tar or sha256sum fail.
    pub fn archive(&self, name: &str, entrypoint: &[&str]) -> Result<PathBuf> {
        let blobs = self.directory.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let layer = self.directory.join("layer");
        run(Command::new("tar")
            .args(["--create", "--sort=name", "--owner=0", "--group=0", "--mtime=@0", "--file"])
            .arg(&layer)
            .arg("--directory")
            .arg(self.directory.join("root"))
            .arg("."))?;
        let layer = self.blob(&layer, "application/vnd.oci.image.layer.v1.tar")?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"] },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        });
        let config = self.json_blob(&config, "application/vnd.oci.image.config.v1+json")?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [layer],
        });
        let mut manifest = self.json_blob(&manifest, "application/vnd.oci.image.manifest.v1+json")?;
        manifest["annotations"] = json!({ "io.containerd.image.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(self.directory.join("index.json"), index.to_string())?;
        fs::write(self.directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let archive = self.directory.join("image.tar");
        run(Command::new("tar")
            .args(["--create", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(&self.directory)
            .args(["blobs", "index.json", "oci-layout"]))?;
        Ok(archive)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.join("root").join(path)
    }

    fn json_blob(&self, value: &Value, media_type: &str) -> Result<Value> {
        let file = self.directory.join("blob");
        fs::write(&file, value.to_string())?;
        self.blob(&file, media_type)
    }

    /// Moves a file to where its digest says, and describes it.
    fn blob(&self, file: &Path, media_type: &str) -> Result<Value> {
        let printed = run(Command::new("sha256sum").arg(file))?;
        let digest = printed.split_whitespace().next().context("sha256sum printed nothing")?;
        let size = fs::metadata(file)?.len();
        fs::rename(file, self.directory.join("blobs/sha256").join(digest))?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size }))
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
