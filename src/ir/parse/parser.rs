//! Tokens to a graph: the header, then one statement per line of the body.

use super::error::{Fault, Parsed, closest, shorten};
use super::lexer::{Kind, Lexer, Placed, Token, utf8};
use crate::attr::Attrs;
use crate::graph::{Graph, Node, Value, ValueId, ValueType};
use crate::op::{Op, Opaque};
use crate::print::{DEFAULT_OPSET, value_name};
use crate::tensor::DType;
use std::collections::BTreeMap;
use std::ops::Range;

/// A value's name with its place.
type Name = (String, Range<usize>);

#[derive(Debug)]
pub(super) struct Parser<'a> {
    pub(super) lexer: Lexer<'a>,
    /// The next token.
    pub(super) token: Token<'a>,
    graph: Graph,
    values: BTreeMap<String, (ValueId, Range<usize>)>,
}

/// An output of a node; `None` where it is `_`.
type Output = Option<(Name, ValueType)>;

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Parsed<Self> {
        let mut lexer = Lexer::new(text);
        let token = lexer.next()?;
        Ok(Self { lexer, token, graph: Graph::new("", DEFAULT_OPSET), values: BTreeMap::new() })
    }

    // ---- tokens -------------------------------------------------------------------------------

    pub(super) fn bump(&mut self) -> Parsed<Token<'a>> {
        let next = self.lexer.next()?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    pub(super) fn eat(&mut self, punct: &str) -> Parsed<bool> {
        let found = self.token.is(punct);
        if found {
            self.bump()?;
        }
        Ok(found)
    }

    pub(super) fn expect(&mut self, punct: &str) -> Parsed<()> {
        match self.eat(punct)? {
            true => Ok(()),
            false => Err(self.unexpected(&format!("`{punct}`"))),
        }
    }

    /// The fault that the next token is not what it should be.
    pub(super) fn unexpected(&self, expected: &str) -> Box<Fault> {
        let found = match self.token.kind {
            Kind::End => "the end of the text".to_owned(),
            _ => format!("`{}`", shorten(self.lexer.source(self.token.span.clone()))),
        };
        Fault::new(self.token.span.clone(), format!("expected {expected}, found {found}"))
    }

    /// Whether the next token is followed by `[` without a space: a type.
    pub(super) fn is_type(&self) -> bool {
        self.lexer.rest().starts_with('[')
    }

    /// Items between commas up to the closing mark, which is taken.
    pub(super) fn list<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        while !self.eat(close)? {
            if !items.is_empty() && !self.eat(",")? {
                return Err(self.unexpected(&format!("`,` or `{close}`")));
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    // ---- the graph ----------------------------------------------------------------------------

    pub(super) fn graph(mut self) -> Parsed<Graph> {
        if !self.token.is_word("graph") {
            return Err(self
                .unexpected("`graph`")
                .help("a graph begins with a line such as `graph @name(%x: f32[N,3]) -> (%y) {`"));
        }
        self.bump()?;
        let Kind::At(name) = &self.token.kind else { return Err(self.unexpected("the graph's `@name`")) };
        self.graph.name.clone_from(name);
        self.bump()?;
        if self.eat("<")? {
            self.list(">", Self::graph_attribute)?;
        }
        self.expect("(")?;
        let inputs = self.list(")", |p| {
            let name = p.value("an input such as `%x: f32[N,3]`")?;
            Ok((name, p.annotation()?))
        })?;
        for ((name, span), ty) in inputs {
            let value = self.graph.add_input(name.clone(), ty);
            self.define(name, span, value)?;
        }
        self.expect("->")?;
        self.expect("(")?;
        let outputs = self.list(")", |p| p.value("an output such as `%y`"))?;
        self.expect("{")?;
        while !self.eat("}")? {
            self.statement()?;
        }
        if self.token.kind != Kind::End {
            return Err(self.unexpected("the end of the text behind the graph"));
        }
        for (name, span) in outputs {
            let value = self.resolve(&name, span, "in the graph")?;
            self.graph.add_output(value);
        }
        Ok(self.graph)
    }

    fn graph_attribute(&mut self) -> Parsed<()> {
        let key = self.bump()?;
        let Kind::Word(word @ ("opset" | "ir_version")) = key.kind else {
            let found = shorten(self.lexer.source(key.span.clone()));
            let message = format!("expected `opset` or `ir_version`, found `{found}`");
            return Err(Fault::new(key.span, message));
        };
        self.expect("=")?;
        let version = self.integer("a version number")?;
        match word {
            "opset" => self.graph.opset = version,
            _ => self.graph.ir_version = version,
        }
        Ok(())
    }

    pub(super) fn integer<T: std::str::FromStr>(&mut self, what: &str) -> Parsed<T> {
        let number = if let Kind::Number(text) = self.token.kind { text.parse().ok() } else { None };
        let number = number.ok_or_else(|| self.unexpected(what))?;
        self.bump()?;
        Ok(number)
    }

    fn value(&mut self, what: &str) -> Parsed<Name> {
        let Kind::Value(name) = &self.token.kind else { return Err(self.unexpected(what)) };
        let name = name.clone();
        let span = self.bump()?.span;
        if name.is_empty() {
            return Err(Fault::new(span, "a value's name must not be empty")
                .help("`_` stands for an omitted input and an unnamed output"));
        }
        Ok((name, span))
    }

    fn define(&mut self, name: String, span: Range<usize>, value: ValueId) -> Parsed<()> {
        if let Some((_, first)) = self.values.get(&name) {
            let message = format!("`{}` is defined twice", shorten(&value_name(&name)));
            let first = Fault::new(first.clone(), "").locate(self.lexer.source(0..span.end));
            return Err(Fault::new(span, message)
                .help(format!("the first definition is at {}:{}", first.line, first.column)));
        }
        self.values.insert(name, (value, span));
        Ok(())
    }

    fn resolve(&self, name: &str, span: Range<usize>, place: &str) -> Parsed<ValueId> {
        if let Some((value, _)) = self.values.get(name) {
            return Ok(*value);
        }
        let fault = Fault::new(span, format!("`{}` is not defined {place}", shorten(&value_name(name))));
        Err(match closest(name, self.values.keys().map(String::as_str)) {
            Some(other) => fault.help(format!("there is a `{}`", value_name(other))),
            None => fault,
        })
    }

    // ---- types --------------------------------------------------------------------------------

    /// `: type` behind a name, if it is there.
    fn annotation(&mut self) -> Parsed<ValueType> {
        if self.eat(":")? {
            return self.value_type();
        }
        // `%x:f32[2]` is a name with a colon in it.
        if self.token.is("[") {
            return Err(self
                .unexpected("a type behind `: `")
                .help("a space belongs between a name's colon and the type: `%x: f32[2]`"));
        }
        Ok(ValueType::default())
    }

    fn value_type(&mut self) -> Parsed<ValueType> {
        let dtype = if self.token.is("?") { None } else { Some(self.dtype()?) };
        if !self.is_type() {
            self.bump()?;
            return Err(self.unexpected("the shape's `[`"));
        }
        self.bump()?;
        let shape = self.shape()?;
        Ok(ValueType { dtype, shape: shape.map(|dims| dims.into_iter().map(|(d, _)| d).collect()) })
    }

    /// The element type that the next token names.
    pub(super) fn dtype(&self) -> Parsed<DType> {
        let Kind::Word(word) = self.token.kind else { return Err(self.unexpected("a type")) };
        DType::from_name(word).ok_or_else(|| {
            Fault::new(self.token.span.clone(), format!("`{}` is not an element type", shorten(word)))
                .help("element types are f32, f16, bf16, f64, i64, i32, i8, u8, bool and others")
        })
    }

    /// A shape; the next token is its `[`.
    pub(super) fn shape(&mut self) -> Parsed<Option<Vec<Placed>>> {
        // The token is taken already, what follows it is not: dimensions are text, not tokens.
        let dims = self.lexer.dims()?;
        self.token = self.lexer.next()?;
        Ok(dims)
    }

    // ---- statements ---------------------------------------------------------------------------

    fn statement(&mut self) -> Parsed<()> {
        let start = self.token.span.clone();
        let outputs = self.outputs()?;
        self.expect("=")?;
        let overridable = self.token.is_word("overridable");
        if overridable {
            self.bump()?;
        }
        if matches!(self.token.kind, Kind::Word(_)) && self.is_type() {
            return self.constant(start, outputs, overridable);
        }
        if overridable {
            return Err(self.unexpected("a constant such as `f32[2] zeros`"));
        }
        self.node(outputs)
    }

    /// The left-hand side: `()` for none.
    fn outputs(&mut self) -> Parsed<Vec<Output>> {
        if self.eat("(")? {
            self.expect(")")?;
            return Ok(vec![]);
        }
        let mut outputs = Vec::new();
        loop {
            if self.token.is_word("_") {
                self.bump()?;
                outputs.push(None);
            } else {
                let name = self.value("a statement such as `%y = Relu(%x)` or the closing `}`")?;
                outputs.push(Some((name, self.annotation()?)));
            }
            if !self.eat(",")? {
                return Ok(outputs);
            }
        }
    }

    fn constant(&mut self, start: Range<usize>, outputs: Vec<Output>, overridable: bool) -> Parsed<()> {
        let mut outputs = outputs.into_iter();
        let (Some(Some(((name, span), ty))), None) = (outputs.next(), outputs.next()) else {
            return Err(Fault::new(start, "a constant has one name"));
        };
        if ty != ValueType::default() {
            let message = "a constant has its type on the right of the `=` only";
            return Err(Fault::new(span, message).help("write `%w = f32[2] zeros`"));
        }
        let tensor = self.tensor()?;
        let ty = ValueType::fixed(tensor.dtype(), tensor.shape());
        let mut node = Node::new(name.clone(), Op::Constant(tensor), vec![Value { name: name.clone(), ty }]);
        node.overridable = overridable;
        let node = self.graph.add_node(node, &[]);
        self.define(name, span, ValueId::of(node))
    }

    fn node(&mut self, outputs: Vec<Output>) -> Parsed<()> {
        let is_opaque = self.token.is_word("opaque");
        if is_opaque {
            self.bump()?;
        }
        let head = self.token.span.clone();
        let mut op_type = self.operator_word()?;
        let mut domain = String::new();
        if self.eat("::")? {
            domain = std::mem::replace(&mut op_type, self.operator_word()?);
        }
        let mut name = None;
        if let Kind::At(n) = &self.token.kind {
            name = Some(n.clone());
            self.bump()?;
        }
        let attrs = if self.eat("<")? { self.attributes()? } else { vec![] };
        let (slots, n_captures) = self.operands()?;
        let is_modelled = Op::MODELLED.contains(&op_type.as_str());
        let op = if is_opaque || !domain.is_empty() || !is_modelled {
            if matches!(op_type.as_str(), "Input" | "Constant") && domain.is_empty() && !is_opaque {
                return Err(Fault::new(head, format!("`{op_type}` is not written as an operator"))
                    .help("inputs stand in the graph's header, constants as `%w = f32[2] zeros`"));
            }
            let attrs: Attrs = attrs.into_iter().map(|(name, _, value)| (name, value)).collect();
            Op::Opaque(Opaque { domain, op_type, attrs, n_captures: n_captures.unwrap_or(0) })
        } else {
            if n_captures.is_some() {
                return Err(Fault::new(head, format!("`{op_type}` has no bodies that could capture values"))
                    .help("write `,` instead of `;`"));
            }
            super::attr::typed_op(&op_type, attrs)?
        };
        let name = name.unwrap_or_else(|| match outputs.first() {
            Some(Some(((name, _), _))) => name.clone(),
            _ => String::new(),
        });
        let values = outputs.iter().map(|output| match output {
            Some(((name, _), ty)) => Value { name: name.clone(), ty: ty.clone() },
            None => Value::default(),
        });
        let node = self.graph.add_node(Node::new(name, op, values.collect()), &slots);
        for (port, output) in outputs.into_iter().enumerate() {
            if let Some(((name, span), _)) = output {
                self.define(name, span, ValueId { node, port: port as u32 })?;
            }
        }
        Ok(())
    }

    fn operator_word(&mut self) -> Parsed<String> {
        let span = self.token.span.clone();
        let word = match &self.token.kind {
            Kind::Word(word) => (*word).to_owned(),
            Kind::Str(bytes) => utf8(bytes.clone(), span.clone())?,
            _ => return Err(self.unexpected("an operator or a type")),
        };
        if word.is_empty() {
            return Err(Fault::new(span, "an operator's name must not be empty"));
        }
        self.bump()?;
        Ok(word)
    }

    /// `(%a, _, %b; %captured)`: the slots, and how many of them stand behind a `;`.
    fn operands(&mut self) -> Parsed<(Vec<Option<ValueId>>, Option<usize>)> {
        if !self.eat("(")? {
            return Err(self.unexpected("the operator's inputs in parentheses"));
        }
        let mut slots = Vec::new();
        let mut first_capture = None;
        let mut is_first = true;
        while !self.eat(")")? {
            if first_capture.is_none() && self.eat(";")? {
                first_capture = Some(slots.len());
            } else if !is_first && !self.eat(",")? {
                return Err(self.unexpected("`,` or `)`"));
            }
            is_first = false;
            if self.token.is_word("_") {
                self.bump()?;
                slots.push(None);
            } else {
                let (name, span) = self.value("an input such as `%x`, or `_` for none")?;
                slots.push(Some(self.resolve(&name, span, "above")?));
            }
        }
        Ok((slots.clone(), first_capture.map(|first| slots.len() - first)))
    }
}
