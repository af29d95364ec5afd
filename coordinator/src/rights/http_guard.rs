//! The guard of the HTTP door: each request needs the one right of its method on the route that matched.

use axum::{
    extract::{MatchedPath, Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use holdfast_security::{Peer, right};

use super::shown::Shown;
use crate::{
    config::Security,
    http::Problem,
    rpc::fault::{Class, Fault},
};

/// Lets through who has the right, with what was shown. Judged by the matched route, never by the text of the path.
pub(crate) async fn guard(
    State(security): State<Security>,
    mut request: Request,
    next: Next,
) -> Response {
    match judge(&security, &request) {
        Ok(shown) => {
            request.extensions_mut().insert(shown);
            next.run(request).await
        }
        Err(fault) => Problem::from(fault).into_response(),
    }
}

fn judge(security: &Security, request: &Request) -> Result<Shown, Fault> {
    let authorization = request.headers().get(header::AUTHORIZATION);
    let authorization = authorization.map(axum::http::HeaderValue::as_bytes);
    let shown = Shown::new(security, request.extensions().get::<Peer>(), authorization)?;
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(right) = right::of_route(request.method().as_str(), route) else {
        let words = format!("nothing was done: nobody has a right to {} {route}", request.method());
        return Err(Fault::new(Class::Denied, "HF2602", words));
    };
    shown.with(right)?;
    Ok(shown)
}
