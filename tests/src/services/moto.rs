//! moto, an imitation of AWS that others wrote: good for the form of requests and answers.
//!
//! It knows no capacity, no throttling, no prices and no client tokens; [`ec2`](crate::ec2) does.

use serde_json::json;
use tempfile::TempDir;

use super::{READY_LIMIT, get};
use crate::process::Process;
use crate::programs;
use crate::unique::Port;

/// A running `moto_server`. Its state is in memory and ends with it.
#[derive(Debug)]
pub struct Moto {
    _process: Process,
    port: Port,
    _directory: TempDir,
}

impl Moto {
    /// Starts one whose EC2 holds these images (id, name) in every region and no others, and checks
    /// that images and instance types of requests exist, as EC2 does.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not become ready.
    #[must_use]
    pub fn start(images: &[(String, String)]) -> Self {
        let directory = TempDir::with_prefix("farm-moto-").expect("a temporary directory");
        let port = Port::reserve();
        let images: Vec<_> = images.iter().map(|(id, name)| image(id, name)).collect();
        let list = directory.path().join("images.json");
        fs_err::write(&list, json!(images).to_string())
            .expect("a temporary directory can be written");
        let program = programs::moto_environment().join("bin/moto_server");
        let arguments = [
            format!("MOTO_AMIS_PATH={}", list.display()),
            "MOTO_ENABLE_AMI_VALIDATION=true".to_owned(),
            "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION=true".to_owned(),
            program.display().to_string(),
            "-H".to_owned(),
            "127.0.0.1".to_owned(),
            "-p".to_owned(),
            port.number().to_string(),
        ];
        let mut process = Process::start(
            &programs::installed("env"),
            arguments,
            directory.path(),
            &directory.path().join("moto.log"),
        );
        process.ready(READY_LIMIT, || {
            get(
                &format!("http://127.0.0.1:{}/moto-api/", port.number()),
                &[],
            )
        });
        Self {
            _process: process,
            port,
            _directory: directory,
        }
    }

    /// What to put into `AWS_ENDPOINT_URL_EC2`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }
}

/// An image as moto reads it from a file.
fn image(id: &str, name: &str) -> serde_json::Value {
    json!({
        "ami_id": id,
        "name": name,
        "owner_id": "123456789012",
        "image_location": format!("123456789012/{name}"),
        "public": false,
        "virtualization_type": "hvm",
        "architecture": "x86_64",
        "state": "available",
        "image_type": "machine",
        "hypervisor": "xen",
        "root_device_name": "/dev/xvda",
        "root_device_type": "ebs",
        "description": "",
        "sriov": "simple",
    })
}
