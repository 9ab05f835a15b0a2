//! Protobuf's wire format, to write messages in.

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tagged(field: u64, kind: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | kind, &mut out);
    out
}

/// A string, bytes or a message.
pub(crate) fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let mut out = tagged(field, 2);
    varint(value.len() as u64, &mut out);
    out.extend_from_slice(value);
    out
}

/// An integer, a boolean or an enum.
pub(crate) fn int(field: u64, value: u64) -> Vec<u8> {
    let mut out = tagged(field, 0);
    varint(value, &mut out);
    out
}

pub(crate) fn double(field: u64, value: f64) -> Vec<u8> {
    let mut out = tagged(field, 1);
    out.extend(value.to_le_bytes());
    out
}
