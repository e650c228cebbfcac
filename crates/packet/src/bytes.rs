//! Reading fixed layouts without panics; every read names its failure.

use crate::DropReason;

/// A cursor over received bytes, integers big-endian.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DropReason> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(DropReason::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DropReason> {
        let (head, tail) = self.0.split_first_chunk().ok_or(DropReason::Truncated)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DropReason> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DropReason> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DropReason> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DropReason> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Demands that nothing is left.
    pub(crate) fn finish(self) -> Result<(), DropReason> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DropReason::Oversized)
        }
    }

    /// Demands that all that is left is zero: padding carries nothing.
    pub(crate) fn finish_padding(self) -> Result<(), DropReason> {
        if self.0.iter().all(|&b| b == 0) {
            Ok(())
        } else {
            Err(DropReason::BadPadding)
        }
    }
}

/// Demands exactly `len` bytes.
pub(crate) fn exact_len(bytes: &[u8], len: usize) -> Result<(), DropReason> {
    match bytes.len().cmp(&len) {
        std::cmp::Ordering::Less => Err(DropReason::Truncated),
        std::cmp::Ordering::Greater => Err(DropReason::Oversized),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

/// Copies `parts` one after the other into a new array and pads with zeros; the parts fit by construction.
pub(crate) fn pack<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let mut at = 0;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    out
}
