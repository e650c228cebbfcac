//! Base64 (RFC 4648 §4) of 32-byte keys, as configuration files write them.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The 44 characters of a key.
pub fn encode(key: &[u8; 32]) -> String {
    let mut out = String::with_capacity(44);
    for chunk in key.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place) & 63) as usize;
            out.push(if place <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    out
}

/// The key in `text`, or None if that is not the one encoding of 32 bytes.
pub fn decode(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=').filter(|digits| digits.len() == 43)?;
    let mut key = [0; 32];
    for (chunk, out) in digits.as_bytes().chunks(4).zip(key.chunks_mut(3)) {
        let mut bits = 0u32;
        for &digit in chunk {
            bits = bits << 6 | ALPHABET.iter().position(|&known| known == digit)? as u32;
        }
        bits <<= 6 * (4 - chunk.len());
        out.copy_from_slice(&bits.to_be_bytes()[1..1 + out.len()]);
    }
    (encode(&key) == text).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(encode(&[0; 32]), format!("{}=", "A".repeat(43)));
        assert_eq!(encode(&[0xff; 32]), format!("{}8=", "/".repeat(42)));
        let rising: [u8; 32] = std::array::from_fn(|at| at as u8);
        assert_eq!(encode(&rising), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        assert_eq!(decode(&encode(&rising)), Some(rising));
    }

    #[test]
    fn other_texts_are_refused() {
        let good = encode(&[7; 32]);
        for bad in
            ["", "AAAA", &good[1..], &good.replace('=', "A"), &good.replace('B', "!"), &format!("{}9=", "/".repeat(42))]
        {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
