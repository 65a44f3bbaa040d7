//! Inlining of model-local functions, for runtimes that do not know them.
//!
//! Every call of a `FunctionProto` is replaced by the function's nodes: inputs and outputs take
//! the names of the call, everything else gets a fresh name, references to attributes are bound to
//! the values at the call or to their defaults. Calls inside functions and inside bodies of control
//! flow are inlined too. The result is for running, not for keeping: unknown fields are dropped.

use crate::error::{OnnxError, Problem};
use crate::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::wire::{LEN, Message};
use bytes::Bytes;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A function that calls another, that calls another, …: this many are enough.
const MAX_DEPTH: usize = 64;
/// Functions that call each other twice grow exponentially; no sane model has this many nodes.
const MAX_NODES: usize = 1 << 18;
/// What protobuf can hold.
const MAX_BYTES: usize = i32::MAX as usize;

/// Domain, name, overload.
type Key = (String, String, String);

/// The model with every call of a model-local function inlined; `None` if it has no functions.
///
/// # Errors
/// [`Problem::Recursive`] for functions that call themselves, [`Problem::Invalid`] for a function
/// that needs another version of an operator set than the model imports or reads an undefined
/// name, [`Problem::TooLarge`] where the result would not fit a protobuf file, and
/// [`Problem::NotAModel`] for bytes that do not decode.
pub fn inline_functions(model: &Bytes) -> Result<Option<Bytes>, OnnxError> {
    let not_a_model = |reason: String| OnnxError::from(Problem::NotAModel { reason });
    let skeleton = Message::parse(model.clone()).map_err(not_a_model)?;
    if !skeleton.fields.iter().any(|f| f.number == 25 && f.wire_type == LEN) {
        return Ok(None);
    }
    drop(skeleton);
    let mut model = ModelProto::decode(model.clone()).map_err(|e| not_a_model(e.to_string()))?;
    let mut graph = model.graph.take().ok_or_else(|| not_a_model("it has no graph".to_owned()))?;

    let mut functions = BTreeMap::new();
    for function in std::mem::take(&mut model.functions) {
        let key = (domain(function.domain()), function.name().to_owned(), function.overload().to_owned());
        functions.insert(key, Rc::new(function));
    }
    let opsets = model.opset_import.iter().map(|o| (domain(o.domain()), o.version())).collect();
    let mut inliner = Inliner {
        functions,
        opsets,
        taken: BTreeMap::new(),
        node_names: BTreeMap::new(),
        active: Vec::new(),
        n_nodes: 0,
        n_bytes: 0,
    };
    inliner.note_names(&graph);
    graph.node = inliner.expand(std::mem::take(&mut graph.node))?;

    for (domain, version) in inliner.opsets {
        if !model.opset_import.iter().any(|o| self::domain(o.domain()) == domain) {
            model.opset_import.push(OperatorSetIdProto { domain: Some(domain), version: Some(version) });
        }
    }
    model.graph = Some(graph);
    check_size(model.encoded_len())?;
    Ok(Some(Bytes::from(model.encode_to_vec())))
}

fn check_size(n: usize) -> Result<(), Problem> {
    if n <= MAX_BYTES {
        return Ok(());
    }
    let reason = format!("would have more than {MAX_BYTES} bytes, the most a protobuf file can hold");
    Err(Problem::TooLarge { place: "the model with its functions inlined".to_owned(), reason })
}

/// The standard domain has two spellings.
fn domain(name: &str) -> String {
    if name == "ai.onnx" { String::new() } else { name.to_owned() }
}

fn key_of(node: &NodeProto) -> Key {
    (domain(node.domain()), node.op_type().to_owned(), node.overload().to_owned())
}

fn place(node: &NodeProto) -> String {
    let name = if node.name().is_empty() { node.output.first().map_or("", |o| o) } else { node.name() };
    format!("node {name:?} ({})", node.op_type())
}

struct Inliner {
    functions: BTreeMap<Key, Rc<FunctionProto>>,
    /// Version of every imported operator set.
    opsets: BTreeMap<String, i64>,
    /// Every value name in use, with the number to try next behind it.
    taken: BTreeMap<String, usize>,
    /// The same for node names, which some runtimes want to be unique too.
    node_names: BTreeMap<String, usize>,
    /// The functions being inlined, outermost first.
    active: Vec<Key>,
    /// Nodes and bytes that inlining has made so far.
    n_nodes: usize,
    n_bytes: usize,
}

impl Inliner {
    fn note_names(&mut self, graph: &GraphProto) {
        self.taken.extend(graph.input.iter().map(|v| (v.name().to_owned(), 1)));
        self.taken.extend(graph.initializer.iter().map(|t| (t.name().to_owned(), 1)));
        for node in &graph.node {
            self.node_names.insert(node.name().to_owned(), 1);
            self.taken.extend(node.input.iter().chain(&node.output).map(|name| (name.clone(), 1)));
            bodies(&node.attribute).for_each(|body| self.note_names(body));
        }
    }

    fn fresh(&mut self, prefix: &str, name: &str) -> String {
        unique(&mut self.taken, format!("{prefix}/{name}"))
    }

    /// The nodes with every call among them and in their bodies replaced.
    fn expand(&mut self, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, Problem> {
        let mut out = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for body in bodies_mut(&mut node.attribute) {
                body.node = self.expand(std::mem::take(&mut body.node))?;
            }
            let key = key_of(&node);
            let Some(function) = self.functions.get(&key).cloned() else {
                out.push(node);
                continue;
            };
            if self.active.contains(&key) {
                return Err(Problem::Recursive { name: format!("{}::{}", key.0, key.1) });
            }
            if self.active.len() >= MAX_DEPTH {
                let reason = format!("its functions call each other more than {MAX_DEPTH} deep");
                return Err(Problem::TooLarge { place: place(&node), reason });
            }
            let body = self.instantiate(&node, &function)?;
            self.active.push(key);
            out.extend(self.expand(body)?);
            self.active.pop();
        }
        Ok(out)
    }

    /// The nodes of a function for one call.
    fn instantiate(&mut self, call: &NodeProto, function: &FunctionProto) -> Result<Vec<NodeProto>, Problem> {
        self.merge_opsets(call, function)?;
        self.n_nodes += function.node.len();
        self.n_bytes = self.n_bytes.saturating_add(function.encoded_len());
        check_size(self.n_bytes)?;
        if self.n_nodes > MAX_NODES {
            let reason = format!("inlining its functions makes more than {MAX_NODES} nodes");
            return Err(Problem::TooLarge { place: place(call), reason });
        }
        for (what, given, formal) in
            [("inputs", &call.input, &function.input), ("outputs", &call.output, &function.output)]
        {
            if given.len() > formal.len() {
                let reason = format!(
                    "calls a model function with {} {what}; the function has {}",
                    given.len(),
                    formal.len()
                );
                return Err(Problem::invalid(place(call), reason));
            }
        }

        let first_output = call.output.first().map_or("", |o| o);
        let prefix = if call.name().is_empty() { first_output } else { call.name() }.to_owned();
        let mut names = BTreeMap::new();
        for (i, formal) in function.input.iter().enumerate() {
            names.insert(formal.clone(), call.input.get(i).cloned().unwrap_or_default());
        }
        let mut copies = Vec::new();
        let mut bound = BTreeSet::new();
        for (i, formal) in function.output.iter().enumerate() {
            let Some(actual) = call.output.get(i).filter(|name| !name.is_empty()) else { continue };
            if function.input.contains(formal) || !bound.insert(formal) {
                // The output is an input, or is an output already: only a copy can bear its name.
                copies.push((formal, actual.clone()));
            } else {
                names.insert(formal.clone(), actual.clone());
            }
        }
        let mut scopes = Scopes { prefix, stack: vec![names] };
        for output in function.node.iter().flat_map(|n| &n.output).filter(|o| !o.is_empty()) {
            self.define(&mut scopes, output);
        }

        let mut nodes = function.node.clone();
        for node in &mut nodes {
            self.rename(node, &mut scopes)?;
            bind_attributes(node, call, function);
        }
        for (formal, output) in copies {
            let input = scopes.find(formal).map(str::to_owned);
            let input =
                input.ok_or_else(|| Problem::Dangling { place: place(call), name: formal.clone() })?;
            nodes.push(NodeProto {
                op_type: Some("Identity".to_owned()),
                input: vec![input],
                output: vec![output],
                ..NodeProto::default()
            });
        }
        Ok(nodes)
    }

    /// Gives a name of the innermost scope a fresh one, unless it has one already.
    fn define(&mut self, scopes: &mut Scopes, name: &str) {
        let prefix = scopes.prefix.clone();
        if let Some(scope) = scopes.stack.last_mut()
            && !scope.contains_key(name)
        {
            scope.insert(name.to_owned(), self.fresh(&prefix, name));
        }
    }

    fn rename(&mut self, node: &mut NodeProto, scopes: &mut Scopes) -> Result<(), Problem> {
        let label = place(node);
        for name in node.input.iter_mut().chain(&mut node.output) {
            scopes.apply(name, &label)?;
        }
        if !node.name().is_empty() {
            node.name = Some(unique(&mut self.node_names, format!("{}/{}", scopes.prefix, node.name())));
        }
        for body in bodies_mut(&mut node.attribute) {
            scopes.stack.push(BTreeMap::new());
            let defined: Vec<String> = definitions(body).filter(|n| !n.is_empty()).cloned().collect();
            defined.iter().for_each(|name| self.define(scopes, name));
            for name in body.input.iter_mut().chain(&mut body.output).filter_map(|v| v.name.as_mut()) {
                scopes.apply(name, &label)?;
            }
            for name in body.initializer.iter_mut().filter_map(|t| t.name.as_mut()) {
                scopes.apply(name, &label)?;
            }
            for tensor in body.sparse_initializer.iter_mut().filter_map(|t| t.values.as_mut()) {
                if let Some(name) = &mut tensor.name {
                    scopes.apply(name, &label)?;
                }
            }
            body.value_info.clear();
            body.quantization_annotation.clear();
            for inner in &mut body.node {
                self.rename(inner, scopes)?;
            }
            scopes.stack.pop();
        }
        Ok(())
    }

    /// Imports the operator sets that a function uses; one of another version than the model's is
    /// an error, because a graph has only one.
    fn merge_opsets(&mut self, call: &NodeProto, function: &FunctionProto) -> Result<(), Problem> {
        let mut used = BTreeSet::new();
        domains(&function.node, &mut used);
        for opset in &function.opset_import {
            let name = domain(opset.domain());
            if !used.contains(&name) {
                continue;
            }
            let imported = *self.opsets.entry(name.clone()).or_insert(opset.version());
            if imported != opset.version() {
                let reason = format!(
                    "the model function needs version {} of operator set {:?}, but the model imports \
                     version {imported}; convert both to one version",
                    opset.version(),
                    if name.is_empty() { "ai.onnx" } else { &name },
                );
                return Err(Problem::invalid(place(call), reason));
            }
        }
        Ok(())
    }
}

/// The name itself, or with the smallest free number behind it.
fn unique(taken: &mut BTreeMap<String, usize>, base: String) -> String {
    let mut n = taken.get(&base).copied().unwrap_or(1);
    let mut candidate = base.clone();
    while taken.contains_key(&candidate) {
        n += 1;
        candidate = format!("{base}.{n}");
    }
    taken.insert(base, n);
    taken.insert(candidate.clone(), 1);
    candidate
}

/// What the names of a function are called at one call, innermost scope last.
struct Scopes {
    prefix: String,
    stack: Vec<BTreeMap<String, String>>,
}

impl Scopes {
    fn find(&self, name: &str) -> Option<&str> {
        self.stack.iter().rev().find_map(|scope| scope.get(name)).map(String::as_str)
    }

    fn apply(&self, name: &mut String, place: &str) -> Result<(), Problem> {
        if name.is_empty() {
            return Ok(());
        }
        match self.find(name) {
            Some(new) => new.clone_into(name),
            None => return Err(Problem::Dangling { place: place.to_owned(), name: name.clone() }),
        }
        Ok(())
    }
}

fn definitions(body: &GraphProto) -> impl Iterator<Item = &String> {
    let tensors =
        body.initializer.iter().chain(body.sparse_initializer.iter().filter_map(|s| s.values.as_ref()));
    body.input
        .iter()
        .filter_map(|v| v.name.as_ref())
        .chain(tensors.filter_map(|t| t.name.as_ref()))
        .chain(body.node.iter().flat_map(|n| &n.output))
}

fn bodies(attributes: &[AttributeProto]) -> impl Iterator<Item = &GraphProto> {
    attributes.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

fn bodies_mut(attributes: &mut [AttributeProto]) -> impl Iterator<Item = &mut GraphProto> {
    attributes.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs))
}

fn domains(nodes: &[NodeProto], used: &mut BTreeSet<String>) {
    for node in nodes {
        used.insert(domain(node.domain()));
        bodies(&node.attribute).for_each(|body| domains(&body.node, used));
    }
}

/// Replaces references to the function's attributes by what the call gives, or by the default;
/// where there is neither, the attribute is absent.
fn bind_attributes(node: &mut NodeProto, call: &NodeProto, function: &FunctionProto) {
    node.attribute.retain_mut(|attribute| {
        let wanted = attribute.ref_attr_name();
        if wanted.is_empty() {
            return true;
        }
        let given = call.attribute.iter().chain(&function.attribute_proto).find(|a| a.name() == wanted);
        let Some(given) = given else { return false };
        let name = attribute.name.take();
        *attribute = AttributeProto { name, ..given.clone() };
        true
    });
    for body in bodies_mut(&mut node.attribute) {
        body.node.iter_mut().for_each(|inner| bind_attributes(inner, call, function));
    }
}
