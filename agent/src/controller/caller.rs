//! Who calls: the service account token in the request, as the API server sees it.
//!
//! Each token is reviewed each time. A cache would accept the tokens of deleted pods for as long as it keeps them, and
//! would save little: an agent asks twice a day for each service account on its node.

use culvert_core::authentication::base64url;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Api;
use kube::api::PostParams;
use serde::Deserialize;
use tonic::metadata::MetadataMap;

use super::refusal::Refusal;

/// The audience of tokens for the CA.
pub(super) const AUDIENCE: &str = "istio-ca";

/// The longest token: those of service accounts have about one kB.
const MAX_TOKEN: usize = 16 << 10;
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// The service account that a token is of, and the pod that it is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) namespace: String,
    pub(super) account: String,
    /// Name and uid. None for tokens that are bound to no pod.
    pub(super) pod: Option<(String, String)>,
}

impl Caller {
    /// `namespace/account`, as `--trusted-node-accounts` has it.
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.account)
    }
}

/// The bearer token among `headers`.
pub(super) fn token(headers: &MetadataMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Refusal::NoToken) };
    let value = value.to_str().map_err(|_| Refusal::NoToken)?;
    let (scheme, token) = value.split_once(' ').ok_or(Refusal::NoToken)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() { Ok(token) } else { Err(Refusal::NoToken) }
}

/// Refuses what cannot be a service account's token for this CA without asking anyone. What it says of itself is not
/// verified: that is for [`review`], and so is its expiry, since this clock may be wrong.
pub(super) fn glance(token: &str) -> Result<(), Refusal> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
        aud: Audiences,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audiences {
        One(String),
        Many(Vec<String>),
    }
    let refuse = |why| Err(Refusal::NoServiceAccountToken(why));
    if token.len() > MAX_TOKEN {
        return refuse("it is too long");
    }
    let &[_, claims, _] = token.split('.').collect::<Vec<_>>().as_slice() else { return refuse("it is no JWT") };
    let Some(claims) = base64url::decode(claims).and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok())
    else {
        return refuse("its claims cannot be read");
    };
    if !claims.sub.starts_with(SERVICE_ACCOUNT) {
        return refuse("its subject is another");
    }
    let audiences = match claims.aud {
        Audiences::One(audience) => vec![audience],
        Audiences::Many(audiences) => audiences,
    };
    match audiences.iter().any(|audience| audience == AUDIENCE) {
        true => Ok(()),
        false => Err(Refusal::Audience(audiences.join(", "))),
    }
}

/// Asks the API server who `token` is of.
pub(super) async fn review(client: &kube::Client, token: &str) -> Result<Caller, Refusal> {
    let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
    let review = TokenReview { spec, ..TokenReview::default() };
    let review = Api::<TokenReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .map_err(|e| Refusal::ApiServer(super::explain(&e, "create", "tokenreviews")))?;
    judge(review.status.unwrap_or_default())
}

/// The caller that `status` tells of.
fn judge(status: TokenReviewStatus) -> Result<Caller, Refusal> {
    if status.authenticated != Some(true) {
        let why = status.error.filter(|error| !error.is_empty());
        return Err(Refusal::Token(why.unwrap_or_else(|| "no reason given".to_owned())));
    }
    // An API server that knows no audiences accepts the token and says none: it has not been checked then.
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(Refusal::Audience(audiences.join(", ")));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account.filter(|(ns, sa)| !ns.is_empty() && !sa.is_empty() && !sa.contains(':'))
    else {
        return Err(Refusal::NotAServiceAccount(name));
    };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let pod = one(POD_NAME).zip(one(POD_UID));
    Ok(Caller { namespace: namespace.to_owned(), account: account.to_owned(), pod })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn accepted(username: &str, audiences: &[&str], extra: &[(&str, &[&str])]) -> TokenReviewStatus {
        let extra: BTreeMap<_, _> =
            extra.iter().map(|(k, v)| ((*k).to_owned(), v.iter().map(|v| (*v).to_owned()).collect())).collect();
        let user = UserInfo { username: Some(username.to_owned()), extra: Some(extra), ..UserInfo::default() };
        let audiences = audiences.iter().map(|a| (*a).to_owned()).collect();
        TokenReviewStatus { authenticated: Some(true), audiences: Some(audiences), user: Some(user), error: None }
    }

    fn reason(status: TokenReviewStatus) -> &'static str {
        judge(status).unwrap_err().reason()
    }

    const NODE: &str = "system:serviceaccount:culvert-system:culvert-node";

    #[test]
    fn a_bound_token_tells_the_account_and_the_pod() {
        let extra: &[(&str, &[&str])] = &[(POD_NAME, &["node-x"]), (POD_UID, &["u1"])];
        let caller = judge(accepted(NODE, &["istio-ca"], extra)).unwrap();
        assert_eq!(caller.full_name(), "culvert-system/culvert-node");
        assert_eq!(caller.pod, Some(("node-x".to_owned(), "u1".to_owned())));
    }

    #[test]
    fn a_pod_without_a_uid_or_with_two_is_no_pod() {
        for extra in [&[(POD_NAME, &["node-x"][..])][..], &[(POD_NAME, &["a", "b"]), (POD_UID, &["u1"])]] {
            assert_eq!(judge(accepted(NODE, &["istio-ca"], extra)).unwrap().pod, None);
        }
    }

    #[test]
    fn what_the_api_server_does_not_vouch_for_is_refused() {
        assert_eq!(reason(TokenReviewStatus::default()), "token");
        assert_eq!(reason(accepted(NODE, &[], &[])), "audience");
        assert_eq!(reason(accepted(NODE, &["https://kubernetes.default.svc"], &[])), "audience");
        for user in [
            "admin",
            "system:node:n1",
            "system:serviceaccount:",
            "system:serviceaccount:a",
            "system:serviceaccount:a:b:c",
        ] {
            assert_eq!(reason(accepted(user, &["istio-ca"], &[])), "not_a_service_account", "{user}");
        }
    }

    #[test]
    fn what_cannot_be_a_token_for_this_ca_is_refused_at_a_glance() {
        let token = |claims: &str| format!("e30.{}.c2ln", base64url::encode(claims.as_bytes()));
        let claims = |aud: &str| format!(r#"{{"iss":"x","sub":"system:serviceaccount:a:b","aud":{aud},"exp":1}}"#);
        for aud in [r#""istio-ca""#, r#"["other","istio-ca"]"#] {
            glance(&token(&claims(aud))).unwrap();
        }
        for aud in [r#""other""#, "[]", r#"["istio-ca2"]"#] {
            assert_eq!(glance(&token(&claims(aud))).unwrap_err().reason(), "audience", "{aud}");
        }
        let person = token(r#"{"sub":"admin","aud":"istio-ca"}"#);
        let long = format!("{}.{}", "x".repeat(MAX_TOKEN), token(&claims(r#""istio-ca""#)));
        for bad in ["", "x", "a.b", "a.b.c", "a.b.c.d", "..", &token("[]"), &token("{}"), &person, &long] {
            assert_eq!(glance(bad).unwrap_err().reason(), "token", "{bad}");
        }
    }

    #[test]
    fn one_bearer_token_is_taken() {
        let headers = |values: &[&str]| {
            let mut headers = MetadataMap::new();
            for value in values {
                headers.append("authorization", value.parse().unwrap());
            }
            headers
        };
        assert_eq!(token(&headers(&["Bearer abc"])).unwrap(), "abc");
        assert_eq!(token(&headers(&["bearer abc"])).unwrap(), "abc");
        for bad in [&[][..], &["Bearer "], &["Bearer"], &["Basic abc"], &["Bearer a", "Bearer b"]] {
            assert!(token(&headers(bad)).is_err(), "{bad:?}");
        }
    }
}
