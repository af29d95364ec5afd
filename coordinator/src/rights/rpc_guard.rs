//! The guard of the gRPC door: each call needs the one right of its exact path.

use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use holdfast_security::{Peer, right};
use tonic::{body::Body, codegen::http};
use tower::{Layer, Service};

use super::shown::Shown;
use crate::{
    config::Security,
    rpc::fault::{Class, Fault},
};

/// Puts [`RpcGuarded`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct RpcGuard {
    security: Security,
}

impl RpcGuard {
    pub(crate) fn new(security: Security) -> Self {
        Self { security }
    }

    fn judge<B>(&self, request: &http::Request<B>) -> Result<Shown, Fault> {
        let authorization = request.headers().get(http::header::AUTHORIZATION);
        let authorization = authorization.map(http::HeaderValue::as_bytes);
        let shown = Shown::new(&self.security, request.extensions().get::<Peer>(), authorization)?;
        let Some(right) = right::of_rpc(request.uri().path()) else {
            let words = "nothing was done: nobody has a right to this call".to_owned();
            return Err(Fault::new(Class::Denied, "HF2602", words));
        };
        shown.with(right)?;
        Ok(shown)
    }
}

impl<S> Layer<S> for RpcGuard {
    type Service = RpcGuarded<S>;

    fn layer(&self, inner: S) -> RpcGuarded<S> {
        RpcGuarded { guard: self.clone(), inner }
    }
}

/// A service that hears only calls whose callers have the right, each with what was shown.
#[derive(Clone, Debug)]
pub(crate) struct RpcGuarded<S> {
    guard: RpcGuard,
    inner: S,
}

impl<S, B> Service<http::Request<B>> for RpcGuarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<http::Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.guard.judge(&request) {
            Ok(shown) => {
                request.extensions_mut().insert(shown);
                Either::Left(self.inner.call(request))
            }
            Err(fault) => Either::Right(ready(Ok(fault.to_status().into_http()))),
        }
    }
}
