//! Small images for containerd, out of files: no registry, no Docker.

use std::collections::BTreeMap;
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
    labels: BTreeMap<String, String>,
    is_compressed: bool,
}

impl Image {
    /// Empty, in this directory, which must not exist.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory.join("root")).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self { directory: directory.to_path_buf(), labels: BTreeMap::new(), is_compressed: false })
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
        fs::create_dir_all(to.parent().context("a path in an image")?)?;
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))
    }

    /// What the image says of itself.
    pub fn label(&mut self, key: &str, value: &str) {
        self.labels.insert(key.to_owned(), value.to_owned());
    }

    /// Has the layer compressed by gzip: a quarter of the bytes for whoever pulls it, and some seconds to make it.
    pub fn compress(&mut self) {
        self.is_compressed = true;
    }

    /// An OCI archive of one layer, for `ctr images import`. The same files give the same bytes.
    ///
    /// # Errors
    /// When tar or sha256sum fail.
    pub fn archive(&self, name: &str, entrypoint: &[&str]) -> Result<PathBuf> {
        let blobs = self.directory.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let layer = self.directory.join("layer");
        run(tar().arg(&layer).arg("--directory").arg(self.directory.join("root")).arg("."))?;
        // A layer's own digest is that of what is unpacked, whatever it is packed in.
        let diff = digest(&layer)?;
        let layer = self.packed(layer)?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": entrypoint,
                "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"],
                "Labels": self.labels,
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff}")] },
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
        run(tar().arg(&archive).arg("--directory").arg(&self.directory).args(["blobs", "index.json", "oci-layout"]))?;
        Ok(archive)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.join("root").join(path)
    }

    fn packed(&self, layer: PathBuf) -> Result<Value> {
        if !self.is_compressed {
            return self.blob(&layer, "application/vnd.oci.image.layer.v1.tar");
        }
        // Without name and time: the same bytes each time.
        run(Command::new("gzip").args(["--no-name", "--force"]).arg(&layer))?;
        self.blob(&layer.with_extension("gz"), "application/vnd.oci.image.layer.v1.tar+gzip")
    }

    fn json_blob(&self, value: &Value, media_type: &str) -> Result<Value> {
        let file = self.directory.join("blob");
        fs::write(&file, value.to_string())?;
        self.blob(&file, media_type)
    }

    /// Moves a file to where its digest says, and describes it.
    fn blob(&self, file: &Path, media_type: &str) -> Result<Value> {
        let digest = digest(file)?;
        let size = fs::metadata(file)?.len();
        fs::rename(file, self.directory.join("blobs/sha256").join(&digest))?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size }))
    }
}

fn digest(file: &Path) -> Result<String> {
    let printed = run(Command::new("sha256sum").arg(file))?;
    printed.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

/// What tar writes depends on names and contents alone.
fn tar() -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]);
    tar.args(["--mode=u+rwX,go+rX,go-w", "--format=gnu", "--file"]);
    tar
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::Scope;

    /// What containerd looks for, and every digest where it says.
    #[test]
    fn an_archive_is_an_image_layout_and_the_same_each_time() {
        for is_compressed in [false, true] {
            check_archive(is_compressed);
        }
    }

    fn check_archive(is_compressed: bool) {
        let scope = Scope::new().unwrap();
        let make = |name: &str| {
            let mut image = Image::create(&scope.directory().join(name)).unwrap();
            if is_compressed {
                image.compress();
            }
            image.write("etc/deep/file", "text").unwrap();
            image.label("a", "b");
            image.archive("localhost/x:1", &["/bin/x"]).unwrap()
        };
        let first = make("image-1");
        assert!(fs::read(&first).unwrap() == fs::read(make("image-2")).unwrap(), "not the same bytes");

        let there = scope.directory().join("unpacked");
        fs::create_dir_all(&there).unwrap();
        run(Command::new("tar").arg("--extract").arg("--file").arg(&first).arg("--directory").arg(&there)).unwrap();
        let json = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let path = there.join("blobs/sha256").join(&digest);
            assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
            assert!(run(Command::new("sha256sum").arg(&path)).unwrap().starts_with(&digest));
            path
        };
        assert_eq!(json(&there.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
        let manifest = json(&there.join("index.json"))["manifests"][0].clone();
        assert_eq!(manifest["annotations"]["io.containerd.image.name"], "localhost/x:1");
        let manifest = json(&blob(&manifest));
        let config = json(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Labels"]["a"], "b");
        let layer = blob(&manifest["layers"][0]);
        let diff = config["rootfs"]["diff_ids"][0].as_str().unwrap().to_owned();
        let script = if is_compressed { "gzip --decompress --stdout $0 | sha256sum" } else { "sha256sum <$0" };
        let unpacked = run(Command::new("sh").args(["-ec", script]).arg(&layer)).unwrap();
        assert_eq!(diff, format!("sha256:{}", unpacked.split_whitespace().next().unwrap()));
        assert_eq!(manifest["layers"][0]["mediaType"].as_str().unwrap().ends_with("+gzip"), is_compressed);
        let listed = run(Command::new("tar").arg("--list").arg("--verbose").arg("--file").arg(layer)).unwrap();
        assert!(listed.contains("0/0") && listed.contains("etc/deep/file"), "{listed}");
    }
}
