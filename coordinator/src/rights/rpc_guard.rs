//! The guard of the gRPC door: each call needs the one right of its exact path, and a place among its caller's.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use holdfast_security::{Peer, right};
use tonic::{Code, body::Body, codegen::http};
use tower::{Layer, Service};

use super::{
    shown::{Shown, require},
    turnstile::{enter, mistaken},
};
use crate::{
    Coordinator,
    registry::callers::Pass,
    rpc::fault::{Class, Fault},
};

/// Puts [`RpcGuarded`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct RpcGuard {
    coordinator: Coordinator,
}

impl RpcGuard {
    pub(crate) fn new(coordinator: Coordinator) -> Self {
        Self { coordinator }
    }

    fn judge<B>(&self, request: &http::Request<B>) -> Result<(Shown, Option<Pass>), Fault> {
        let authorization = request.headers().get(http::header::AUTHORIZATION);
        let authorization = authorization.map(http::HeaderValue::as_bytes);
        let security = &self.coordinator.config().security;
        let shown = Shown::new(security, request.extensions().get::<Peer>(), authorization)?;
        let Some(right) = right::of_rpc(request.uri().path()) else {
            let words = "nothing was done: nobody has a right to this call".to_owned();
            return Err(Fault::new(Class::Denied, "HF2602", words));
        };
        let caller = shown.caller()?;
        let pass = enter(&self.coordinator.registry(), &caller, right)?;
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
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.guard.judge(&request) {
            Ok((shown, pass)) => {
                request.extensions_mut().insert(shown);
                let answer = self.inner.call(request);
                let Some(pass) = pass else { return Box::pin(answer) };
                Box::pin(async move {
                    let answer = answer.await;
                    pass.ended(answer.as_ref().is_ok_and(says_mistaken));
                    answer
                })
            }
            Err(fault) => Box::pin(std::future::ready(Ok(fault.to_status().into_http()))),
        }
    }
}

/// Whether an answer says that the request itself was mistaken; an error without a message has its code in the head.
fn says_mistaken(response: &http::Response<Body>) -> bool {
    let code = response.headers().get("grpc-status").map(http::HeaderValue::as_bytes);
    let codes = [Code::InvalidArgument, Code::PermissionDenied, Code::OutOfRange];
    code.is_some_and(|code| codes.contains(&Code::from_bytes(code)))
}
