//! The messages of DNS: what a client asks, and the mesh's answer to it (RFC 1035, RFC 6891).
//!
//! Only questions for addresses are taken apart. Everything else, and every name that the mesh does not know, is left as
//! the bytes that it came as.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::{Family, TTL};

/// The length of a message's header.
pub const HEADER: usize = 12;
/// What a client takes over UDP that does not say otherwise.
const DEFAULT_PAYLOAD: u16 = 512;
/// What fits one datagram, with headers of either family.
const MAX_PAYLOAD: u16 = 65_000;

/// What a client has sent.
#[derive(Debug)]
pub enum Request {
    /// Nothing that could be answered: too short, or itself an answer.
    Noise,
    /// Something that cannot be read, and what to say to that.
    Malformed(Vec<u8>),
    /// A question for the addresses of a name.
    Addresses(Box<Question>),
    /// Anything else: the type that is asked for, if it is a question.
    Other(Option<RecordType>),
}

/// A question for the addresses of a name.
#[derive(Debug)]
pub struct Question {
    /// The name in lower case, without the final dot.
    pub name: String,
    /// Of which family.
    pub family: Family,
    message: Message,
}

/// Reads what a client has sent.
pub fn read(bytes: &[u8]) -> Request {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = Header::read(&mut decoder) else { return Request::Noise };
    if header.metadata.message_type == MessageType::Response {
        return Request::Noise;
    }
    // Without exactly one question it is something between the client and its server.
    if header.metadata.op_code != OpCode::Query || header.counts.queries != 1 {
        return Request::Other(None);
    }
    let malformed = || Request::Malformed(error(bytes, ResponseCode::FormErr));
    let Ok(query) = Query::read(&mut decoder) else { return malformed() };
    let family = match query.query_type() {
        RecordType::A => Family::V4,
        RecordType::AAAA => Family::V6,
        other => return Request::Other(Some(other)),
    };
    if query.query_class() != DNSClass::IN {
        return Request::Other(Some(query.query_type()));
    }
    let Ok(message) = Message::from_vec(bytes) else { return malformed() };
    // A later version of EDNS is the server's to refuse.
    if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return Request::Other(Some(query.query_type()));
    }
    let mut name = query.name().to_lowercase().to_ascii();
    if name.ends_with('.') {
        name.pop();
    }
    Request::Addresses(Box::new(Question { name, family, message }))
}

impl Question {
    /// The type that is asked for.
    pub fn record_type(&self) -> RecordType {
        match self.family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        }
    }

    /// How long an answer over UDP may be.
    pub fn payload(&self) -> usize {
        let said = self.message.edns.as_ref().map_or(DEFAULT_PAYLOAD, Edns::max_payload);
        said.clamp(DEFAULT_PAYLOAD, MAX_PAYLOAD).into()
    }

    /// The answer with these addresses, of the name itself or of what it is an alias of; without them, and marked as
    /// truncated, where it would be longer than `limit`. `None` if it cannot be written at all.
    pub fn answer(&self, alias_of: Option<&str>, addresses: &[IpAddr], limit: usize) -> Option<Vec<u8>> {
        let query = self.message.queries.first()?;
        let mut answer = self.response(ResponseCode::NoError);
        let mut owner = query.name().clone();
        if let Some(alias_of) = alias_of {
            let canonical = Name::from_ascii(format!("{alias_of}.")).ok()?;
            answer.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(canonical.clone()))));
            owner = canonical;
        }
        for ip in addresses {
            let data = match ip {
                IpAddr::V4(ip) => RData::A((*ip).into()),
                IpAddr::V6(ip) => RData::AAAA((*ip).into()),
            };
            answer.add_answer(Record::from_rdata(owner.clone(), TTL, data));
        }
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= limit { Some(bytes) } else { answer.truncate().to_vec().ok() }
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut response = Message::response(self.message.metadata.id, OpCode::Query);
        response.metadata.recursion_desired = self.message.metadata.recursion_desired;
        response.metadata.checking_disabled = self.message.metadata.checking_disabled;
        response.metadata.recursion_available = true;
        response.metadata.authoritative = true;
        response.metadata.response_code = code;
        // As it came, capitals and all: some clients compare (draft-vixie-dnsext-dns0x20).
        response.add_queries(self.message.queries.iter().cloned());
        if let Some(asked) = &self.message.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_PAYLOAD).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
            response.set_edns(edns);
        }
        response
    }
}

/// The answer to `request` that tells of an error and nothing else; empty where `request` has no header.
pub fn error(request: &[u8], code: ResponseCode) -> Vec<u8> {
    let Some(header) = request.get(..HEADER) else { return Vec::new() };
    let mut answer = header.to_vec();
    // A response; what kind of query it was, and that recursion was desired, as they came.
    answer[2] = 0x80 | (header[2] & 0x79);
    // Recursion is available.
    answer[3] = 0x80 | (u16::from(code) as u8 & 0x0f);
    answer[4..].fill(0);
    // The question too, where it can be told where it ends.
    let mut decoder = BinDecoder::new(request);
    let question =
        Header::read(&mut decoder).is_ok_and(|header| header.counts.queries == 1) && Query::read(&mut decoder).is_ok();
    if let Some(question) = request.get(HEADER..decoder.index()).filter(|_| question) {
        answer[5] = 1;
        answer.extend_from_slice(question);
    }
    answer
}

/// The id of a message; `None` if it is too short to be one.
pub fn id(message: &[u8]) -> Option<u16> {
    let [high, low, ..] = message.get(..HEADER)? else { return None };
    Some(u16::from_be_bytes([*high, *low]))
}

/// Whether a message is a response, by its flag.
pub fn is_response(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

/// Gives a message another id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.get_mut(..2) {
        field.copy_from_slice(&id.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn question(message: &Message) -> Box<Question> {
        match read(&message.to_vec().unwrap()) {
            Request::Addresses(question) => question,
            other => panic!("{other:?}"),
        }
    }

    fn ips(count: u8) -> Vec<IpAddr> {
        (0..count).map(|n| IpAddr::from([10, 0, 0, n])).collect()
    }

    #[test]
    fn a_question_is_answered_as_it_was_asked() {
        let asked = question(&query("CaRt.Shop.", RecordType::A));
        assert_eq!((&*asked.name, asked.family), ("cart.shop", Family::V4));
        let answer = Message::from_vec(&asked.answer(None, &ips(2), asked.payload()).unwrap()).unwrap();
        assert_eq!((answer.metadata.id, answer.metadata.message_type), (0x1234, MessageType::Response));
        assert!(answer.metadata.recursion_desired && !answer.metadata.truncation && answer.edns.is_none());
        assert_eq!(answer.queries[0].name().to_ascii(), "CaRt.Shop.");
        assert_eq!(answer.answers.len(), 2);
        assert!(answer.answers.iter().all(|record| record.name.to_ascii() == "CaRt.Shop." && record.ttl == TTL));
    }

    #[test]
    fn an_alias_is_told_before_its_addresses() {
        let asked = question(&query("api.example.com.shop.svc.cluster.local.", RecordType::A));
        let bytes = asked.answer(Some("api.example.com"), &ips(1), 512).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        let kinds: Vec<_> = answer.answers.iter().map(Record::record_type).collect();
        assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
        assert_eq!(answer.answers[1].name.to_ascii(), "api.example.com.");
    }

    #[test]
    fn what_does_not_fit_is_truncated_and_a_larger_buffer_is_used() {
        let mut message = query("cart.shop.", RecordType::A);
        let asked = question(&message);
        let cut = Message::from_vec(&asked.answer(None, &ips(100), asked.payload()).unwrap()).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries.len() == 1);
        let whole = Message::from_vec(&asked.answer(None, &ips(100), usize::MAX).unwrap()).unwrap();
        assert!(!whole.metadata.truncation && whole.answers.len() == 100);

        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_version(0).set_dnssec_ok(true);
        message.set_edns(edns);
        let asked = question(&message);
        let answer = Message::from_vec(&asked.answer(None, &ips(100), asked.payload()).unwrap()).unwrap();
        assert_eq!(answer.answers.len(), 100);
        assert!(answer.edns.is_some_and(|edns| edns.version() == 0 && edns.flags().dnssec_ok));
    }

    #[test]
    fn only_questions_for_addresses_are_taken_apart() {
        for kind in [RecordType::SRV, RecordType::TXT, RecordType::HTTPS, RecordType::ANY, RecordType::Unknown(65_280)]
        {
            let bytes = query("cart.shop.", kind).to_vec().unwrap();
            assert!(matches!(read(&bytes), Request::Other(Some(found)) if found == kind), "{kind}");
        }
        let mut update = query("cart.shop.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert!(matches!(read(&update.to_vec().unwrap()), Request::Other(None)));
        let mut two = query("cart.shop.", RecordType::A);
        two.add_query(Query::query(Name::root(), RecordType::A));
        assert!(matches!(read(&two.to_vec().unwrap()), Request::Other(None)));
        let mut chaos = query("cart.shop.", RecordType::A);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert!(matches!(read(&chaos.to_vec().unwrap()), Request::Other(Some(RecordType::A))));
        let mut later = query("cart.shop.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        later.set_edns(edns);
        assert!(matches!(read(&later.to_vec().unwrap()), Request::Other(Some(RecordType::A))));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_id_or_ignored() {
        let bytes = query("cart.shop.", RecordType::A).to_vec().unwrap();
        for cut in HEADER..bytes.len() {
            let Request::Malformed(answer) = read(&bytes[..cut]) else { panic!("{cut}") };
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!((answer.metadata.id, answer.metadata.response_code), (0x1234, ResponseCode::FormErr));
        }
        for cut in 0..HEADER {
            assert!(matches!(read(&bytes[..cut]), Request::Noise));
        }
        let response = question(&query("a.", RecordType::A)).answer(None, &[], 512).unwrap();
        assert!(matches!(read(&response), Request::Noise), "or two agents could talk for ever");
    }

    #[test]
    fn an_error_repeats_the_question() {
        let bytes = query("CaRt.shop.", RecordType::AAAA).to_vec().unwrap();
        let answer = Message::from_vec(&error(&bytes, ResponseCode::ServFail)).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!((answer.metadata.id, answer.queries[0].name().to_ascii()), (0x1234, "CaRt.shop.".to_owned()));
        assert!(error(&bytes[..5], ResponseCode::ServFail).is_empty());
    }
}
