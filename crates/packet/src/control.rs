//! Control messages cut into control frames, and their bounded reassembly. spec: WIRE-54, WIRE-55

use crate::bytes::Reader;
use crate::frames::CONTROL;
use crate::DropReason;

/// Bytes of a control frame before its content.
const FRAME_HEADER_LEN: usize = 10;
/// Sizes that control frames are padded to; the largest fits an IPv6 minimum MTU with all headers.
pub const BUCKETS: [usize; 6] = [64, 128, 256, 512, 1024, 1200];
/// Content of one frame.
pub const MAX_CHUNK: usize = BUCKETS[BUCKETS.len() - 1] - FRAME_HEADER_LEN;
/// Frames of one message: a rekey takes two, a full gateway list fewer than eight.
pub const MAX_CHUNKS: usize = 8;
/// Bytes of one message.
pub const MAX_MESSAGE: usize = MAX_CHUNK * MAX_CHUNKS;
/// Unfinished messages of one session. A peer sends one or two at a time.
pub const MAX_UNFINISHED: usize = 4;
/// Age at which an unfinished message is given up; senders repeat far earlier.
pub const MAX_AGE_NS: u64 = 10_000_000_000;
/// Finished messages remembered, so that a repetition is recognised.
const REMEMBERED: usize = 16;

/// Message type: opens a rekey. Types below 16 belong to the packet core.
pub const TYPE_REKEY_REQUEST: u8 = 1;
/// Message type: answers a rekey.
pub const TYPE_REKEY_REPLY: u8 = 2;
/// First message type that the control plane may use.
pub const FIRST_APPLICATION_TYPE: u8 = 16;

/// One frame of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlFrame<'a> {
    pub message_id: u32,
    pub index: u8,
    pub count: u8,
    pub message_type: u8,
    pub chunk: &'a [u8],
}

impl<'a> ControlFrame<'a> {
    /// Parses a plaintext whose first byte is 0x12.
    pub fn parse(plaintext: &'a [u8]) -> Result<Self, DropReason> {
        if !BUCKETS.contains(&plaintext.len()) {
            return Err(DropReason::BadPadding);
        }
        let mut reader = Reader::new(plaintext);
        if reader.u8()? != CONTROL {
            return Err(DropReason::UnknownFrame);
        }
        let (message_id, index, count, message_type) = (reader.u32()?, reader.u8()?, reader.u8()?, reader.u8()?);
        let len = usize::from(reader.u16()?);
        let chunk = reader.take(len)?;
        reader.finish_padding()?;
        let partial = u16::from(index) + 1 < u16::from(count) && chunk.len() != MAX_CHUNK;
        if count == 0 || usize::from(count) > MAX_CHUNKS || index >= count || partial {
            return Err(DropReason::Malformed);
        }
        Ok(Self { message_id, index, count, message_type, chunk })
    }

    /// The padded plaintext.
    fn to_bytes(self) -> Vec<u8> {
        let mut out = vec![CONTROL];
        out.extend_from_slice(&self.message_id.to_be_bytes());
        out.extend_from_slice(&[self.index, self.count, self.message_type]);
        out.extend_from_slice(&(self.chunk.len() as u16).to_be_bytes());
        out.extend_from_slice(self.chunk);
        let bucket = BUCKETS.into_iter().find(|&size| size >= out.len()).expect("a chunk fits the largest bucket");
        out.resize(bucket, 0);
        out
    }
}

/// Cuts a message into padded plaintexts; `None` if it is longer than [`MAX_MESSAGE`].
pub fn cut_message(message_id: u32, message_type: u8, content: &[u8]) -> Option<Vec<Vec<u8>>> {
    if content.len() > MAX_MESSAGE {
        return None;
    }
    let count = content.len().div_ceil(MAX_CHUNK).max(1) as u8;
    let chunk = |index: u8| {
        let start = usize::from(index) * MAX_CHUNK;
        &content[start..content.len().min(start + MAX_CHUNK)]
    };
    let frame = |index| ControlFrame { message_id, index, count, message_type, chunk: chunk(index) };
    Some((0..count).map(|index| frame(index).to_bytes()).collect())
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlMessage {
    pub message_id: u32,
    pub message_type: u8,
    pub content: Vec<u8>,
    /// A message of this identifier was delivered before: answer again if the answer may be lost, but act once.
    pub repeated: bool,
}

struct Unfinished {
    message_id: u32,
    message_type: u8,
    since_ns: u64,
    chunks: Vec<Option<Vec<u8>>>,
}

impl Unfinished {
    fn new(frame: &ControlFrame<'_>, now_ns: u64) -> Self {
        let chunks = vec![None; usize::from(frame.count)];
        Self { message_id: frame.message_id, message_type: frame.message_type, since_ns: now_ns, chunks }
    }

    fn agrees(&self, frame: &ControlFrame<'_>) -> bool {
        self.message_type == frame.message_type && self.chunks.len() == usize::from(frame.count)
    }
}

/// Collects frames of one session into messages, bounded in number, size and age.
#[derive(Default)]
pub struct ControlReassembler {
    unfinished: Vec<Unfinished>,
    finished: std::collections::VecDeque<u32>,
}

impl ControlReassembler {
    /// Adds one frame; returns the message when it is whole. `now_ns` is any rising clock.
    pub fn accept(&mut self, frame: &ControlFrame<'_>, now_ns: u64) -> Result<Option<ControlMessage>, DropReason> {
        self.unfinished.retain(|message| now_ns.saturating_sub(message.since_ns) <= MAX_AGE_NS);
        let at = self.find_or_start(frame, now_ns)?;
        let message = &mut self.unfinished[at];
        if !message.agrees(frame) {
            return Err(DropReason::Malformed);
        }
        message.chunks[usize::from(frame.index)].get_or_insert_with(|| frame.chunk.to_vec());
        if message.chunks.iter().any(Option::is_none) {
            return Ok(None);
        }
        let message = self.unfinished.swap_remove(at);
        Ok(Some(self.finish(message)))
    }

    /// Messages under way.
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    fn find_or_start(&mut self, frame: &ControlFrame<'_>, now_ns: u64) -> Result<usize, DropReason> {
        if let Some(at) = self.unfinished.iter().position(|message| message.message_id == frame.message_id) {
            return Ok(at);
        }
        if self.unfinished.len() == MAX_UNFINISHED {
            return Err(DropReason::ReassemblyFull);
        }
        self.unfinished.push(Unfinished::new(frame, now_ns));
        Ok(self.unfinished.len() - 1)
    }

    fn finish(&mut self, message: Unfinished) -> ControlMessage {
        let repeated = self.finished.contains(&message.message_id);
        if !repeated {
            if self.finished.len() == REMEMBERED {
                self.finished.pop_front();
            }
            self.finished.push_back(message.message_id);
        }
        let content = message.chunks.into_iter().flatten().flatten().collect();
        ControlMessage { message_id: message.message_id, message_type: message.message_type, content, repeated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn feed(frames: &[Vec<u8>], into: &mut ControlReassembler, now_ns: u64) -> Vec<ControlMessage> {
        let accept = |frame: &Vec<u8>| into.accept(&ControlFrame::parse(frame).unwrap(), now_ns).unwrap();
        frames.iter().filter_map(accept).collect()
    }

    proptest! {
        #[test]
        fn messages_round_trip_in_any_order(id: u32, kind: u8, content in vec(any::<u8>(), 0..=MAX_MESSAGE), seed: u64) {
            let mut frames = cut_message(id, kind, &content).unwrap();
            prop_assert!(frames.iter().all(|frame| BUCKETS.contains(&frame.len())));
            let count = frames.len();
            frames.rotate_left((seed % count as u64) as usize);
            let messages = feed(&frames, &mut ControlReassembler::default(), 0);
            prop_assert_eq!(messages, vec![ControlMessage { message_id: id, message_type: kind, content, repeated: false }]);
        }

        #[test]
        fn parse_never_panics(bytes in vec(any::<u8>(), 0..1300), bucket in 0usize..6) {
            let mut bytes = bytes;
            bytes.resize(BUCKETS[bucket], 0);
            bytes[0] = CONTROL;
            let _ = ControlFrame::parse(&bytes);
        }
    }

    #[test]
    fn a_repetition_is_marked() {
        let frames = cut_message(3, 20, &[1; 2000]).unwrap();
        let mut reassembler = ControlReassembler::default();
        assert!(!feed(&frames, &mut reassembler, 0)[0].repeated);
        assert!(feed(&frames, &mut reassembler, 0)[0].repeated);
    }

    #[test]
    fn unfinished_messages_are_bounded_in_number_and_age() {
        let mut reassembler = ControlReassembler::default();
        let first = |id| cut_message(id, 20, &[1; 2000]).unwrap().remove(0);
        for id in 0..MAX_UNFINISHED as u32 {
            assert!(feed(&[first(id)], &mut reassembler, 0).is_empty());
        }
        let next = first(99);
        let frame = ControlFrame::parse(&next).unwrap();
        assert_eq!(reassembler.accept(&frame, MAX_AGE_NS), Err(DropReason::ReassemblyFull));
        assert_eq!(reassembler.accept(&frame, MAX_AGE_NS + 1), Ok(None));
        assert_eq!(reassembler.unfinished(), 1);
    }

    #[test]
    fn contradicting_frames_are_malformed() {
        let mut reassembler = ControlReassembler::default();
        feed(&cut_message(1, 20, &[1; 2000]).unwrap()[..1], &mut reassembler, 0);
        let other = cut_message(1, 21, &[1; 2000]).unwrap().remove(1);
        assert_eq!(reassembler.accept(&ControlFrame::parse(&other).unwrap(), 0), Err(DropReason::Malformed));
    }

    #[test]
    fn shapes_outside_the_format_are_refused() {
        let good = cut_message(1, 20, &[7; 30]).unwrap().remove(0);
        assert_eq!(ControlFrame::parse(&good[..63]), Err(DropReason::BadPadding));
        for (at, value, reason) in [
            (5, 1, DropReason::Malformed),
            (6, 0, DropReason::Malformed),
            (6, 2, DropReason::Malformed),
            (6, 9, DropReason::Malformed),
            (8, 1, DropReason::Truncated),
            (63, 1, DropReason::BadPadding),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(ControlFrame::parse(&bad), Err(reason), "{at} {value}");
        }
        assert!(cut_message(1, 20, &[0; MAX_MESSAGE + 1]).is_none());
    }
}
