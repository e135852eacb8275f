//! Why a certificate was not signed: for the log and the counter, never for the caller.

use culvert_core::identity::Identity;
use tonic::Status;

use crate::ca::{CaError, CsrProblem};

/// Why a certificate was not signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the request has no bearer token in its authorization header")]
    NoToken,
    #[error("the request cannot be read: {0}")]
    Unread(String),
    #[error("the token is none of a service account: {0}; mount a projected token with audience istio-ca")]
    NoServiceAccountToken(&'static str),
    #[error("the API server does not accept the token: {0}")]
    Token(String),
    #[error("the token is for other audiences ({0}); mount a projected token with audience istio-ca")]
    Audience(String),
    #[error("{0} is no service account: only pods are given certificates")]
    NotAServiceAccount(String),
    #[error(
        "{account} asks for {identity}, and may ask only for itself; if it is the node agent's, add it to \
         --trusted-node-accounts (Helm: controller.trustedNodeAccounts)"
    )]
    NotTrusted { account: String, identity: String },
    #[error("the token of {0} is bound to no pod; mount a projected token, not the one of a Secret")]
    Unbound(String),
    #[error("the token is of pod {pod} with uid {token}, but {now}")]
    Pod { pod: String, token: String, now: String },
    #[error("{0:?} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    NotAnIdentity(String),
    #[error("{identity} is of another trust domain than this mesh's, {own}")]
    TrustDomain { identity: Identity, own: String },
    #[error("{caller} on node {node} asks for {identity}, of which no pod runs there")]
    OtherNode { caller: String, node: String, identity: Identity },
    #[error("{0}")]
    Csr(#[from] CsrProblem),
    #[error("the CSR of {identity} names someone else: {named:?}")]
    CsrName { identity: Identity, named: String },
    #[error("the API server does not answer: {0}")]
    ApiServer(String),
    #[error("{0}")]
    Signing(#[from] CaError),
    #[error("there is no signing certificate: {0}")]
    NoAuthority(String),
    #[error("the mesh options have not been read yet")]
    NoOptions,
    #[error("too many requests at once")]
    Busy,
}

impl Refusal {
    /// The label of the counter.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Unread(_) => "unread",
            Self::NoServiceAccountToken(_) | Self::Token(_) => "token",
            Self::Audience(_) => "audience",
            Self::NotAServiceAccount(_) => "not_a_service_account",
            Self::NotTrusted { .. } => "not_trusted",
            Self::Unbound(_) => "unbound_token",
            Self::Pod { .. } => "pod",
            Self::NotAnIdentity(_) => "not_an_identity",
            Self::TrustDomain { .. } => "trust_domain",
            Self::OtherNode { .. } => "other_node",
            Self::Csr(_) => "csr",
            Self::CsrName { .. } => "csr_name",
            Self::ApiServer(_) => "api_server",
            Self::Signing(_) => "signing",
            Self::NoAuthority(_) | Self::NoOptions => "not_ready",
            Self::Busy => "busy",
        }
    }

    /// Whether it is this side's fault, so that the caller should try again soon.
    fn is_ours(&self) -> bool {
        matches!(self, Self::ApiServer(_) | Self::Signing(_) | Self::NoAuthority(_) | Self::NoOptions | Self::Busy)
    }

    /// What the caller is told: that it was refused, and nothing about what there is. The log has the rest.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Busy => Status::resource_exhausted("too many requests at once"),
            ours if ours.is_ours() => Status::unavailable("cannot sign now"),
            _ => Status::unauthenticated("request authenticate failure"),
        }
    }
}
