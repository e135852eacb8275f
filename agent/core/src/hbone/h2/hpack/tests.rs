use proptest::prelude::*;

use super::*;

type Fields = Vec<(String, String)>;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, DecodeError> {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let mut fields = Vec::new();
    decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
    Ok(fields)
}

fn fields(list: &[(&str, &str)]) -> Fields {
    list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter_map(|b| char::from(b).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// RFC 7541 Appendix C.4: three requests, Huffman coded, one decoder.
#[test]
fn the_request_examples_of_the_rfc_decode() {
    let mut decoder = Decoder::default();
    let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
    assert_eq!(decode(&mut decoder, &hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff")), Ok(fields(&first)));
    let second = [&first[..], &[("cache-control", "no-cache")]].concat();
    assert_eq!(decode(&mut decoder, &hex("8286 84be 5886 a8eb 1064 9cbf")), Ok(fields(&second)));
    let third = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ];
    let block = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
    assert_eq!(decode(&mut decoder, &block), Ok(fields(&third)));
}

/// RFC 7541 Appendix C.5.1 and C.5.2 with a table of 256 bytes: the second response evicts.
#[test]
fn the_response_examples_of_the_rfc_decode_and_evict() {
    let mut decoder = Decoder::default();
    decode(&mut decoder, &hex("3fe1 01")).unwrap(); // table size 256
    let block = hex(
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
    );
    let mut response = [
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ];
    assert_eq!(decode(&mut decoder, &block), Ok(fields(&response)));
    response[0].1 = "307";
    assert_eq!(decode(&mut decoder, &hex("4803 3330 37c1 c0bf")), Ok(fields(&response)));
    assert!(decoder.table.get(3).is_some());
    assert!(decoder.table.get(4).is_none(), ":status 302 was evicted");
}

#[test]
fn malformed_blocks_lose_the_compression_state() {
    for (block, error) in [
        ("80", DecodeError::Index),
        ("be", DecodeError::Index),
        ("ff80 8080 8001", DecodeError::Integer),
        ("ff", DecodeError::Truncated),
        ("4003 6162", DecodeError::Truncated),
        ("82 20", DecodeError::SizeUpdate),
        ("3fe2 1f", DecodeError::SizeUpdate),
        ("4084 ffff ffff 00", DecodeError::Huffman), // EOS
        ("4081 1f 00", DecodeError::Huffman),        // "a" and padding of ones is valid, next line is not
        ("4081 18 00", DecodeError::Huffman),        // padding of zeros
        ("4082 1fff 00", DecodeError::Huffman),      // padding of more than 7 bits
    ] {
        let valid = block.starts_with("4081 1f");
        assert_eq!(decode(&mut Decoder::default(), &hex(block)).err(), (!valid).then_some(error), "{block}");
    }
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut table = DynamicTable::default();
    table.insert(b"a", b"b");
    table.insert(b"a", &[0; 4096]);
    assert!(table.get(0).is_none());
}

#[test]
fn the_table_stays_within_its_size_and_gives_memory_back() {
    let mut table = DynamicTable::default();
    for i in 0..10_000u32 {
        table.insert(b"name", &vec![b'v'; (i * 7919 % 900) as usize]);
        assert_eq!(table.get(0).unwrap().0, b"name");
    }
    assert!(table.heap_size() <= 3 * 4096, "{}", table.heap_size());
    table.resize(0);
    assert_eq!(table.heap_size(), 0);
}

#[test]
fn an_unused_decoder_holds_no_memory() {
    assert_eq!(Decoder::default().heap_size(), 0);
}

#[test]
fn a_peer_that_shrinks_its_table_is_told_that_we_know_once() {
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    encoder.peer_table_size(8192);
    encoder.start_block(&mut out);
    assert_eq!(out, [] as [u8; 0]);
    encoder.peer_table_size(0);
    encoder.start_block(&mut out);
    encoder.start_block(&mut out);
    assert_eq!(out, [0x20]);
}

#[test]
fn static_fields_take_one_byte() {
    let mut out = Vec::new();
    field(&mut out, ":status", "200");
    assert_eq!(out, [0x88]);
    out.clear();
    field(&mut out, ":authority", "");
    assert_eq!(out, [0x01, 0x00]);
}

proptest! {
    #[test]
    fn huffman_code_survives_coding_and_decoding(text: Vec<u8>) {
        let mut out = Vec::new();
        huffman::decode(&huffman::encode(&text), &mut out).unwrap();
        prop_assert_eq!(out, text);
    }

    #[test]
    fn whatever_the_encoder_writes_is_read_back(list in prop::collection::vec(("[a-z:-]{0,12}|:status|age", "\\PC{0,200}|200"), 0..8)) {
        let mut block = Vec::new();
        list.iter().for_each(|(name, value)| field(&mut block, name, value));
        prop_assert_eq!(decode(&mut Decoder::default(), &block), Ok(list));
    }

    #[test]
    fn no_block_makes_the_decoder_panic_or_grow(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8)) {
        let mut decoder = Decoder::default();
        for block in blocks {
            if decode(&mut decoder, &block).is_err() {
                break;
            }
        }
        prop_assert!(decoder.heap_size() <= 3 * 4096);
    }
}
