//! A pass as it is kept: JSON by gzip, written and read as a stream.
//!
//! The World of 100,000 instances is 40 MB of JSON. It is compressed while it is written and parsed
//! while it is unpacked, so the text never exists as a whole; both happen on a thread of their own.

use std::io::{BufReader, BufWriter, Write as _};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::{Pass, PassSummary, StoreError};
use crate::ids::PassId;

/// A pass, ready to be written.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) summary: PassSummary,
    pub(super) body: Vec<u8>,
}

/// Compresses `pass`.
pub(super) async fn pack(pass: Arc<Pass>) -> Result<Packed, StoreError> {
    tokio::task::spawn_blocking(move || {
        let summary = summary(&pass);
        // Level 1: the repetition of a World is found as well as by level 6, in a third of the time.
        let gzip = GzEncoder::new(Vec::new(), Compression::fast());
        // serde_json writes every bracket by itself; the encoder should not be called for each.
        let mut out = BufWriter::with_capacity(64 << 10, gzip);
        serde_json::to_writer(&mut out, pass.as_ref())?;
        out.flush()?;
        let gzip = out
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        Ok(Packed {
            summary,
            body: gzip.finish()?,
        })
    })
    .await
    .map_err(|error| StoreError::Unavailable(error.to_string()))?
    .map_err(|error: std::io::Error| {
        StoreError::Unavailable(format!("the pass cannot be written as JSON: {error}"))
    })
}

/// The pass that `body` is.
pub(super) async fn unpack(id: PassId, body: Vec<u8>) -> Result<Pass, StoreError> {
    tokio::task::spawn_blocking(move || {
        serde_json::from_reader(BufReader::new(GzDecoder::new(body.as_slice())))
    })
    .await
    .map_err(|error| StoreError::Unavailable(error.to_string()))?
    .map_err(|error| {
        StoreError::Damaged(format!(
            "pass `{id}` cannot be read, other passes are not affected: {error}"
        ))
    })
}

fn summary(pass: &Pass) -> PassSummary {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let asked = pass.plan.launches.iter().map(|launch| launch.count);
    PassSummary {
        id: pass.id,
        at: pass.at,
        launches: asked.fold(0, u32::saturating_add),
        terminations: count(pass.plan.terminations.len()),
        faults: count(pass.faults.len()),
    }
}
