//! Models.

use std::time::Instant;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
};
use hop3_common::{
    api::{InferRequest, InferResponse, ModelPush, ModelVersionView, ModelView, ProblemDetails},
    codes::Code,
    id::ModelName,
    spec::ModelSpec,
    tensor::{self, Tensor, TensorSpec},
};

use super::{
    Shared,
    problem::{Answer, ApiError, json, parse},
};

/// Every model, by name.
#[utoipa::path(get, path = "/v1/models", tag = "models",
    responses((status = 200, body = Vec<ModelView>)))]
pub(super) async fn list(State(core): State<Shared>) -> Answer<Json<Vec<ModelView>>> {
    Ok(Json(core.models().await?))
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{name}", tag = "models", params(("name" = String, Path)),
    responses((status = 200, body = ModelView), (status = 404, body = ProblemDetails)))]
pub(super) async fn show(
    State(core): State<Shared>,
    Path(name): Path<String>,
) -> Answer<Json<ModelView>> {
    Ok(Json(core.model(&parse("name", &name)?).await?))
}

/// Makes an ONNX artifact the next version, once a node has loaded it.
#[utoipa::path(post, path = "/v1/models/{name}/versions", tag = "models",
    params(("name" = String, Path)), request_body = ModelPush,
    responses((status = 201, body = ModelVersionView), (status = 400, body = ProblemDetails)))]
pub(super) async fn push(
    State(core): State<Shared>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<(StatusCode, Json<ModelVersionView>)> {
    let name: ModelName = parse("name", &name)?;
    let push: ModelPush = json(&body, "")?;
    Ok((
        StatusCode::CREATED,
        Json(core.push_model(&name, push).await?),
    ))
}

/// Declares how a model is served. Replicas follow.
#[utoipa::path(post, path = "/v1/models/{name}/deploy", tag = "models",
    params(("name" = String, Path)), request_body = ModelSpec,
    responses((status = 200, body = ModelView), (status = 404, body = ProblemDetails)))]
pub(super) async fn deploy(
    State(core): State<Shared>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Json<ModelView>> {
    let name: ModelName = parse("name", &name)?;
    let spec: ModelSpec = json(&body, "spec")?;
    spec.check()?;
    Ok(Json(core.deploy_model(&name, spec).await?))
}

/// Goes back to the version deployed before.
#[utoipa::path(post, path = "/v1/models/{name}/rollback", tag = "models",
    params(("name" = String, Path)),
    responses((status = 200, body = ModelView), (status = 409, body = ProblemDetails)))]
pub(super) async fn rollback(
    State(core): State<Shared>,
    Path(name): Path<String>,
) -> Answer<Json<ModelView>> {
    Ok(Json(core.rollback_model(&parse("name", &name)?).await?))
}

/// Stops serving a model; its versions stay.
#[utoipa::path(post, path = "/v1/models/{name}/undeploy", tag = "models",
    params(("name" = String, Path)),
    responses((status = 200, body = ModelView), (status = 404, body = ProblemDetails)))]
pub(super) async fn undeploy(
    State(core): State<Shared>,
    Path(name): Path<String>,
) -> Answer<Json<ModelView>> {
    Ok(Json(core.undeploy_model(&parse("name", &name)?).await?))
}

/// Stops serving a model and forgets its versions.
#[utoipa::path(delete, path = "/v1/models/{name}", tag = "models",
    params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemDetails)))]
pub(super) async fn remove(
    State(core): State<Shared>,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    core.remove_model(&parse("name", &name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One inference. JSON: tensors by input name; `application/x-npy`: the model's only input.
#[utoipa::path(post, path = "/v1/models/{name}/infer", tag = "models",
    params(("name" = String, Path)), request_body = InferRequest,
    responses((status = 200, body = InferResponse), (status = 400, body = ProblemDetails)))]
pub(super) async fn infer(
    State(core): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Json<InferResponse>> {
    let begun = Instant::now();
    let name: ModelName = parse("name", &name)?;
    let specs = core.model_inputs(&name).await?;
    let npy = headers
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes() == b"application/x-npy");
    let inputs = if npy {
        from_npy(&specs, &body)?
    } else {
        from_json(&specs, &body)?
    };
    let inference = core.infer(&name, inputs).await?;
    // Tensors always serialise: numbers, strings and lists.
    let json = |tensor| serde_json::to_value(tensor::Json(tensor)).unwrap_or_default();
    let outputs = inference
        .outputs
        .iter()
        .map(|(name, tensor)| (name.clone(), json(tensor)));
    Ok(Json(InferResponse {
        outputs: outputs.collect(),
        version: inference.version,
        node: inference.node,
        infer_us: inference.infer_us,
        total_us: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
    }))
}

fn from_npy(specs: &[TensorSpec], body: &Bytes) -> Answer<Vec<(String, Tensor)>> {
    let [only] = specs else {
        let names: Vec<_> = specs.iter().map(TensorSpec::name).collect();
        let message = format!(
            "the model has {} inputs ({}): send JSON",
            specs.len(),
            names.join(", ")
        );
        return Err(ApiError::new(Code::TensorShape, message));
    };
    let tensor = tensor::from_npy(body)
        .map_err(|error| ApiError::new(Code::TensorShape, error.to_string()))?;
    Ok(vec![(only.name().to_owned(), tensor)])
}

fn from_json(specs: &[TensorSpec], body: &[u8]) -> Answer<Vec<(String, Tensor)>> {
    let request: InferRequest = json(body, "")?;
    let tensor = |(name, value): (String, serde_json::Value)| {
        let dtype = specs
            .iter()
            .find(|spec| spec.name() == name)
            .map(TensorSpec::dtype);
        let tensor = tensor::from_json(&value, dtype)
            .map_err(|error| ApiError::field(&format!("inputs.{name}"), error))?;
        Ok((name, tensor))
    };
    request.inputs.into_iter().map(tensor).collect()
}
