//! The internet checksum (RFC 1071), wide enough for the compiler to vectorise.

/// Ones' complement sum of `data` added to `initial`, not folded; an odd last byte is padded with zero.
pub fn sum(data: &[u8], initial: u64) -> u64 {
    let mut total = initial;
    let mut blocks = data.chunks_exact(32);
    let mut lanes = [0u64; 8];
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut native: u64 = lanes.iter().map(|lane| (lane & 0xffff_ffff) + (lane >> 32)).sum();
    let mut rest = blocks.remainder().chunks_exact(2);
    for word in &mut rest {
        native += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = rest.remainder() {
        native += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    // The sum is independent of byte order (RFC 1071, section 2 B): swap once at the end.
    total += u64::from(u16::from_be(fold(native)));
    total
}

/// Folds a sum to 16 bits, without the final complement.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum of the pseudo-header of TCP or UDP; `source` and `destination` are 4 or 16 bytes, `length` counts bytes.
pub fn pseudo_header(source: &[u8], destination: &[u8], protocol: u8, length: usize) -> u64 {
    sum(source, 0) + sum(destination, 0) + u64::from(protocol) + (length as u64 & 0xffff) + (length as u64 >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(data: &[u8]) -> u16 {
        let mut total = 0u64;
        for pair in data.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        fold(total)
    }

    proptest! {
        #[test]
        fn equals_the_definition(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let ours = fold(sum(&data, 0));
            // 0x0000 and 0xffff are the same number in ones' complement.
            prop_assert_eq!(ours % 0xffff, naive(&data) % 0xffff);
        }
    }
}
