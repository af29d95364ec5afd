//! The guard of the HTTP door: each request needs the one right of its method on the route that matched, and a place among its caller's.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use holdfast_security::{Peer, right};

use super::{
    shown::{Shown, require},
    turnstile::{enter, mistaken},
};
use crate::{
    Coordinator,
    http::Problem,
    registry::callers::Pass,
    rpc::fault::{Class, Fault},
};

/// Lets through who has the right, with what was shown. Judged by the matched route, never by the text of the path.
///
/// A request counts as under way until the head of its answer is there: a stream of events counts when it is opened.
pub(crate) async fn guard(
    State(coordinator): State<Coordinator>,
    mut request: Request,
    next: Next,
) -> Response {
    match judge(&coordinator, &request) {
        Ok((shown, pass)) => {
            request.extensions_mut().insert(shown);
            let response = next.run(request).await;
            if let Some(pass) = pass {
                pass.ended(says_mistaken(response.status()));
            }
            response
        }
        Err(fault) => Problem::from(fault).into_response(),
    }
}

fn judge(coordinator: &Coordinator, request: &Request) -> Result<(Shown, Option<Pass>), Fault> {
    let authorization = request.headers().get(header::AUTHORIZATION);
    let authorization = authorization.map(axum::http::HeaderValue::as_bytes);
    let security = &coordinator.config().security;
    let shown = Shown::new(security, request.extensions().get::<Peer>(), authorization)?;
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(right) = right::of_route(request.method().as_str(), route) else {
        let words = format!("nothing was done: nobody has a right to {} {route}", request.method());
        return Err(Fault::new(Class::Denied, "HF2602", words));
    };
    let caller = shown.caller()?;
    let pass = enter(&coordinator.registry(), &caller, right)?;
    match require(&caller, right) {
        Ok(_) => Ok((shown, pass)),
        Err(fault) => {
            if let Some(pass) = pass {
                pass.ended(mistaken(fault.class));
            }
            Err(fault)
        }
    }
}

/// Whether an answer says that the request itself was mistaken: malformed, too large, or not allowed.
fn says_mistaken(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 403 | 413 | 415)
}
