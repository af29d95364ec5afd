//! The readers of bodies and queries alone, without a door, for a fuzzer.

use axum::{
    extract::Query,
    http::{HeaderMap, Uri},
};
use holdfast_proto::v1::exchange_request::Request;

use super::{
    body::{AddBranch, Close, Finish, Retry, RollBack, Submit, parse},
    operating,
};

/// What `bytes` ask for, as a body of each route on which they are one.
pub(crate) fn bodies(bytes: &[u8]) -> Vec<Request> {
    let gid = || "FUZZED-1".to_owned();
    let submit = parse::<Submit>(bytes).and_then(|body| body.into_wire(&HeaderMap::new()));
    let add = parse::<AddBranch>(bytes).and_then(|body| body.into_wire(gid()));
    let others = [
        parse::<Close>(bytes).and_then(|body| body.into_wire(gid())),
        parse::<RollBack>(bytes).map(|body| body.into_wire(gid())),
        parse::<Finish>(bytes).map(|body| body.into_wire(gid())),
        parse::<Retry>(bytes).map(|body| body.into_wire(gid())),
    ];
    [submit, add].into_iter().chain(others).flatten().collect()
}

/// The query of `uri` as a search of the history, checked as the route does.
pub(crate) fn query(uri: &Uri) {
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else { return };
    if let Ok(request) = operating::search(pairs) {
        // Refused or not, it comes to an end.
        drop(crate::history::check_search(&request));
    }
}
