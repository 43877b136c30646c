//! The data sets. A new one is a function that fills a [`DataSet`] and a row in [`OCI`] or [`DOCKER`].

use std::sync::Arc;

use serde_json::{Value, json};
use shoal_proto::digest::Algorithm;

use super::{ARTIFACT, ARTIFACT_OTHER, Content, DataSet, EMPTY_JSON, Manifest};
use crate::image::media;

/// Annotations of the large manifest, and the characters of each: just below the 4 MB that every registry takes.
const LARGE_ANNOTATIONS: (usize, usize) = (390, 10_000);
/// The large blob: more than one buffer of anything.
const LARGE_BLOB_LEN: usize = 6_000_001;
/// A layer of tar, uncompressed.
const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

type Fill = fn(DataSet) -> DataSet;

const OCI: [(&str, Fill); 22] = [
    ("image", image),
    ("image-uncompressed", image_uncompressed),
    ("image-zstd", image_zstd),
    ("image-large-manifest", image_large_manifest),
    ("image-large-blob", image_large_blob),
    ("image-no-layers", image_no_layers),
    ("image-empty-layer", image_empty_layer),
    ("image-repeated-layer", image_repeated_layer),
    ("image-custom-fields", image_custom_fields),
    ("image-data-field", image_data_field),
    ("image-foreign-layers", image_foreign_layers),
    ("image-no-media-type", image_no_media_type),
    ("image-odd-json", image_odd_json),
    ("index", index),
    ("index-nested", index_nested),
    ("index-empty", index_empty),
    ("artifact", artifact),
    ("artifact-no-content", artifact_no_content),
    ("artifact-index", artifact_index),
    ("subject-image", subject_image),
    ("subject-index", subject_index),
    ("subject-missing", subject_missing),
];
const DOCKER: [(&str, Fill); 2] = [("docker-image", docker_image), ("docker-list", docker_list)];
/// Sets that are pushed under SHA-512 as well. The others differ in what does not depend on the algorithm.
const SHA512: [&str; 9] = [
    "image",
    "image-large-manifest",
    "image-empty-layer",
    "image-no-layers",
    "index",
    "index-nested",
    "artifact",
    "subject-image",
    "subject-missing",
];

/// Every set, each under every algorithm that it is pushed with.
pub(in super::super) fn all() -> Vec<Arc<DataSet>> {
    let mut sets = oci();
    sets.extend(docker());
    sets
}

/// The OCI ones.
pub(in super::super) fn oci() -> Vec<Arc<DataSet>> {
    let sha512 = OCI.iter().filter(|(name, _)| SHA512.contains(name));
    fill(&OCI, Algorithm::Sha256).chain(fill(sha512, Algorithm::Sha512)).collect()
}

/// The Docker ones.
pub(in super::super) fn docker() -> Vec<Arc<DataSet>> {
    fill(&DOCKER, Algorithm::Sha256).collect()
}

/// Those with manifests that refer to others.
pub(in super::super) fn with_subject() -> Vec<Arc<DataSet>> {
    oci().into_iter().filter(|set| !set.subjects().is_empty()).collect()
}

fn fill<'a>(
    table: impl IntoIterator<Item = &'a (&'static str, Fill)>,
    algorithm: Algorithm,
) -> impl Iterator<Item = Arc<DataSet>> {
    table.into_iter().map(move |(name, fill)| Arc::new(fill(DataSet::new(name, algorithm))))
}

/// An image manifest of this config and these layers (descriptors).
fn manifest_of(config: &Value, layers: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config, "layers": layers })
}

fn index_of<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> Value {
    let descriptors: Vec<_> = manifests.into_iter().zip(["amd64", "arm64"]).map(platform).collect();
    json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": descriptors })
}

fn platform((manifest, architecture): (&Manifest, &str)) -> Value {
    let mut descriptor = manifest.descriptor();
    descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
    descriptor
}

fn config(set: &mut DataSet, note: &str) -> Value {
    let config = json!({
        "architecture": "amd64", "os": "linux", "author": set.label(), "note": note,
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    set.blob(config.to_string()).descriptor(media::CONFIG)
}

fn layer(set: &mut DataSet, name: &str) -> Value {
    set.noise(name, 3000 + name.len()).descriptor(media::LAYER)
}

fn image_json(set: &mut DataSet, note: &str) -> Value {
    let config = config(set, note);
    let layers = [layer(set, &format!("{note}-1")), layer(set, &format!("{note}-2"))];
    manifest_of(&config, &layers)
}

fn image(mut set: DataSet) -> DataSet {
    let json = image_json(&mut set, "image");
    set.add(&json);
    set.tag("image")
}

fn image_uncompressed(mut set: DataSet) -> DataSet {
    let config = config(&mut set, "tar");
    let layer = set.noise("tar", 2048).descriptor(LAYER_TAR);
    set.add(&manifest_of(&config, &[layer]));
    set.tag("uncompressed")
}

fn image_zstd(mut set: DataSet) -> DataSet {
    let config = config(&mut set, "zstd");
    let layer = set.noise("zstd", 2048).descriptor(media::LAYER_ZSTD);
    set.add(&manifest_of(&config, &[layer]));
    set.tag("zstd")
}

fn image_large_manifest(mut set: DataSet) -> DataSet {
    let mut json = image_json(&mut set, "large");
    let (count, len) = LARGE_ANNOTATIONS;
    let annotations: Value = (0..count).map(|n| (format!("annotation-{n}"), Value::from("A".repeat(len)))).collect();
    json["annotations"] = annotations;
    set.add(&json);
    set.tag("large-manifest")
}

fn image_large_blob(mut set: DataSet) -> DataSet {
    let config = config(&mut set, "large blob");
    let layer = set.noise("large", LARGE_BLOB_LEN).descriptor(media::LAYER);
    set.add(&manifest_of(&config, &[layer]));
    set.tag("large-blob")
}

fn image_no_layers(mut set: DataSet) -> DataSet {
    let config = config(&mut set, "none");
    set.add(&manifest_of(&config, &[]));
    set.tag("no-layers")
}

fn image_empty_layer(mut set: DataSet) -> DataSet {
    let config = config(&mut set, "empty");
    let layers = [set.blob("").descriptor(LAYER_TAR), layer(&mut set, "full")];
    set.add(&manifest_of(&config, &layers));
    set.tag("empty-layer")
}

fn image_repeated_layer(mut set: DataSet) -> DataSet {
    let config = config(&mut set, "repeated");
    let layer = layer(&mut set, "same");
    set.add(&manifest_of(&config, &[layer.clone(), layer.clone(), layer]));
    set.tag("repeated-1").tag("repeated-2")
}

fn image_custom_fields(mut set: DataSet) -> DataSet {
    let mut json = image_json(&mut set, "custom");
    json["org.example.field"] = json!({ "list": [1, 2.5, null, true], "text": "\u{e9}\u{1f40b}" });
    json["layers"][0]["org.example.layer"] = json!("kept");
    json["annotations"] = json!({ "org.example.key": "value", "\u{e9}": "\u{1f40b}\n\t\"" });
    let image = set.add(&json);
    let mut index = index_of([&image]);
    index["org.example.index"] = json!([[]]);
    set.add(&index);
    set.tag("custom-fields")
}

fn image_data_field(mut set: DataSet) -> DataSet {
    let config = set.blob("{}");
    let mut descriptor = config.descriptor(EMPTY_JSON);
    // Base64 of `{}`.
    descriptor["data"] = json!("e30=");
    let layer = layer(&mut set, "data");
    set.add(&manifest_of(&descriptor, &[layer]));
    set.tag("data-field")
}

fn image_foreign_layers(mut set: DataSet) -> DataSet {
    let config = config(&mut set, "foreign");
    let absent = Content::new(set.algorithm, "a layer that is not here");
    let mut foreign = absent.descriptor(media::LAYER_FOREIGN);
    foreign["urls"] = json!([format!("http://store.example.com/blobs/{}", absent.digest)]);
    let layers = [foreign, layer(&mut set, "own")];
    set.add(&manifest_of(&config, &layers));
    set.tag("foreign-layers")
}

fn image_no_media_type(mut set: DataSet) -> DataSet {
    let mut json = image_json(&mut set, "untyped");
    json.as_object_mut().expect("it is an object").remove("mediaType");
    set.add(&json);
    set.tag("no-media-type")
}

/// The same JSON as others, but not as any serialiser writes it: whoever parses and writes it again changes its digest.
fn image_odd_json(mut set: DataSet) -> DataSet {
    let json = image_json(&mut set, "odd");
    let text = format!("\n{json:#}").replace("  ", "\t ").replace("\"schemaVersion\": 2", "\"schemaVersion\" :\r\n 2");
    let content = Content::new(set.algorithm, text.replace('/', "\\/") + "\n\n");
    set.manifests.push(Manifest::of(content, media::MANIFEST.to_owned(), &json));
    set.tag("odd-json")
}

fn two_images(set: &mut DataSet, note: &str) -> [Manifest; 2] {
    ["amd64", "arm64"].map(|architecture| {
        let json = image_json(set, &format!("{note}-{architecture}"));
        set.add(&json)
    })
}

fn index(mut set: DataSet) -> DataSet {
    let images = two_images(&mut set, "index");
    set.add(&index_of(&images));
    set.tag("index")
}

fn index_nested(mut set: DataSet) -> DataSet {
    let inner = ["left", "right"].map(|side| {
        let images = two_images(&mut set, side);
        set.add(&index_of(&images))
    });
    set.add(&index_of(&inner));
    set.tag("nested")
}

fn index_empty(mut set: DataSet) -> DataSet {
    set.add(&json!({
        "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [], "annotations": { "set": set.label() }
    }));
    set.tag("empty-index")
}

fn artifact_json(set: &mut DataSet, artifact_type: &str, name: &str) -> Value {
    let config = set.blob("{}").descriptor(EMPTY_JSON);
    let layer = set.noise(name, 777).descriptor(artifact_type);
    let mut json = manifest_of(&config, &[layer]);
    json["artifactType"] = json!(artifact_type);
    json["annotations"] = json!({ "org.example.name": name });
    json
}

fn artifact(mut set: DataSet) -> DataSet {
    let json = artifact_json(&mut set, ARTIFACT, "artifact");
    set.add(&json);
    set.tag("artifact")
}

fn artifact_no_content(mut set: DataSet) -> DataSet {
    let empty = set.blob("{}").descriptor(EMPTY_JSON);
    let mut json = manifest_of(&empty, std::slice::from_ref(&empty));
    json["artifactType"] = json!(ARTIFACT);
    json["annotations"] = json!({ "org.example.name": "nothing in it" });
    set.add(&json);
    set.tag("artifact-no-content")
}

fn artifact_index(mut set: DataSet) -> DataSet {
    let parts = ["one", "two"].map(|name| {
        let json = artifact_json(&mut set, ARTIFACT, name);
        set.add(&json)
    });
    let mut json = index_of(&parts);
    json["artifactType"] = json!(ARTIFACT_OTHER);
    set.add(&json);
    set.tag("artifact-index")
}

/// An image, and what refers to it: an image without an artifact type, two artifacts of different types.
fn subject_image(mut set: DataSet) -> DataSet {
    let json = image_json(&mut set, "subject");
    let subject = set.add(&json).descriptor();
    set = set.tag("subject");
    let mut referrer = image_json(&mut set, "plain");
    referrer["subject"] = subject.clone();
    set.add(&referrer);
    for (artifact_type, name) in [(ARTIFACT, "first"), (ARTIFACT_OTHER, "second")] {
        let mut referrer = artifact_json(&mut set, artifact_type, name);
        referrer["subject"] = subject.clone();
        set.add(&referrer);
        set = set.tag(&format!("artifact-{name}"));
    }
    set
}

/// An index, and what refers to it: an index without an artifact type, one with, and an artifact.
fn subject_index(mut set: DataSet) -> DataSet {
    let images = two_images(&mut set, "subject");
    let subject = set.add(&index_of(&images)).descriptor();
    set = set.tag("subject");
    let mut plain = index_of(&images[..1]);
    plain["subject"] = subject.clone();
    set.add(&plain);
    let mut typed = index_of(&images[1..]);
    typed["artifactType"] = json!(ARTIFACT);
    typed["annotations"] = json!({ "org.example.name": "typed" });
    typed["subject"] = subject.clone();
    set.add(&typed);
    let mut artifact = artifact_json(&mut set, ARTIFACT_OTHER, "artifact");
    artifact["subject"] = subject;
    set.add(&artifact);
    set.tag("artifact")
}

/// An artifact that refers to what nobody has pushed.
fn subject_missing(mut set: DataSet) -> DataSet {
    let absent = Content::new(set.algorithm, format!("absent for {}", set.label()));
    let mut json = artifact_json(&mut set, ARTIFACT, "orphan");
    json["subject"] = absent.descriptor(media::MANIFEST);
    set.add(&json);
    set.tag("orphan")
}

fn docker_json(set: &mut DataSet, note: &str) -> Value {
    let mut config = config(set, note);
    config["mediaType"] = json!(media::DOCKER_CONFIG);
    let layer = set.noise(note, 4321).descriptor(media::DOCKER_LAYER);
    json!({ "schemaVersion": 2, "mediaType": media::DOCKER_MANIFEST, "config": config, "layers": [layer] })
}

fn docker_image(mut set: DataSet) -> DataSet {
    let json = docker_json(&mut set, "docker");
    set.add(&json);
    set.tag("docker")
}

fn docker_list(mut set: DataSet) -> DataSet {
    let images = ["amd64", "arm64"].map(|architecture| {
        let json = docker_json(&mut set, architecture);
        set.add(&json)
    });
    let mut list = index_of(&images);
    list["mediaType"] = json!(media::DOCKER_LIST);
    set.add(&list);
    set.tag("docker-list")
}
