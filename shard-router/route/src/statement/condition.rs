//! From a condition to keys: what an expression says of a seat's key, and which seats it ties.

use sqlparser::ast::{ArrayElemTypeDef, BinaryOperator, DataType, Expr, UnaryOperator, Value};

use super::{
    scope::Scopes,
    seat::{Keys, Seats},
};
use crate::{
    KeyColumn, KeyType,
    algorithm::Side,
    limit::KEYS_MAX,
    plan::{Cast, Constant, Place},
};

/// What is known of a statement's parameters beside their values.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParameterUses(pub(crate) Vec<u32>);

impl ParameterUses {
    fn alone(&self, index: usize) -> bool {
        self.0.get(index) == Some(&1)
    }
}

/// What `expr` says of `seat`'s key when it is true.
pub(crate) fn keys(
    expr: &Expr,
    seat: usize,
    scopes: &Scopes<'_>,
    seats: &Seats,
    uses: &ParameterUses,
) -> Keys {
    let again = |expr: &Expr| keys(expr, seat, scopes, seats, uses);
    let column = |expr: &Expr| match scopes.column(expr, seats) {
        Some((found, column)) if found == seat => Some(column),
        _ => None,
    };
    match expr {
        Expr::Nested(inner) => again(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => again(left).and(again(right)),
        Expr::BinaryOp { left, op: BinaryOperator::Or, right } => again(left).or(again(right)),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let sides = [(left, right), (right, left)];
            let equal = sides.into_iter().find_map(|(one, other)| {
                Some(Keys::OneOf(column(one)?, vec![constant(other, uses)?]))
            });
            equal.unwrap_or(Keys::All)
        }
        Expr::InList { expr, list, negated: false } if list.len() <= KEYS_MAX => {
            let constants: Option<Vec<_>> = list.iter().map(|item| constant(item, uses)).collect();
            match (column(expr), constants) {
                (Some(column), Some(constants)) => Keys::OneOf(column, constants),
                _ => Keys::All,
            }
        }
        Expr::BinaryOp { left, op, right } => {
            let one = |expr, of, side| Some((column(expr)?, constant(of, uses)?, side));
            let bound = side_of(op).and_then(|(side, turned)| {
                one(left, right, side).or_else(|| one(right, left, turned))
            });
            bound.map_or(Keys::All, |(column, constant, side)| {
                Keys::Within(column, vec![(side, constant)])
            })
        }
        Expr::Between { expr, negated: false, low, high } => {
            let Some(column) = column(expr) else { return Keys::All };
            let ends = [(FROM, low), (TO, high)];
            let known =
                ends.into_iter().filter_map(|(side, end)| Some((side, constant(end, uses)?)));
            let known: Vec<_> = known.collect();
            if known.is_empty() { Keys::All } else { Keys::Within(column, known) }
        }
        Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => match column(left) {
            Some(column) => any_of(column, right, seat, seats, uses),
            None => Keys::All,
        },
        Expr::Value(value) if matches!(value.value, Value::Boolean(false)) => Keys::Nothing,
        _ => Keys::All,
    }
}

const FROM: Side = Side::From { inclusive: true };
const TO: Side = Side::To { inclusive: true };

/// Where `key op value` leaves keys, and where `value op key` does.
fn side_of(op: &BinaryOperator) -> Option<(Side, Side)> {
    let (above, below) = (Side::From { inclusive: false }, Side::To { inclusive: false });
    match op {
        BinaryOperator::Gt => Some((above, below)),
        BinaryOperator::GtEq => Some((FROM, TO)),
        BinaryOperator::Lt => Some((below, above)),
        BinaryOperator::LtEq => Some((TO, FROM)),
        _ => None,
    }
}

fn any_of(column: usize, right: &Expr, seat: usize, seats: &Seats, uses: &ParameterUses) -> Keys {
    let key_type = seats.0[seat].columns[column].key_type;
    match right {
        Expr::Nested(inner) => any_of(column, inner, seat, seats, uses),
        Expr::Array(array) if array.elem.len() <= KEYS_MAX => {
            let constants: Option<Vec<_>> =
                array.elem.iter().map(|item| constant(item, uses)).collect();
            constants.map_or(Keys::All, |constants| Keys::OneOf(column, constants))
        }
        Expr::Cast { expr, data_type: DataType::Array(of), .. } => match element_cast(of) {
            Some(cast) if fits(cast, key_type) => match constant(expr, uses) {
                Some(constant) if constant.cast.is_none() && !constant.negative => {
                    Keys::AnyOf(column, Constant { cast: Some(cast), ..constant })
                }
                _ => Keys::All,
            },
            _ => Keys::All,
        },
        other => match constant(other, uses) {
            Some(constant) if constant.cast.is_none() && !constant.negative => {
                Keys::AnyOf(column, constant)
            }
            _ => Keys::All,
        },
    }
}

fn fits(cast: Cast, key_type: KeyType) -> bool {
    match cast {
        Cast::Integer => key_type == KeyType::Integer,
        Cast::Text => matches!(key_type, KeyType::Text | KeyType::Varchar | KeyType::Char),
        Cast::Uuid => key_type == KeyType::Uuid,
        Cast::Date => key_type == KeyType::Date,
    }
}

fn element_cast(of: &ArrayElemTypeDef) -> Option<Cast> {
    match of {
        ArrayElemTypeDef::AngleBracket(of)
        | ArrayElemTypeDef::SquareBracket(of, _)
        | ArrayElemTypeDef::Parenthesis(of) => cast_to(of),
        ArrayElemTypeDef::None | ArrayElemTypeDef::Qualified(..) => None,
    }
}

/// The casts that keep a key what it is.
fn cast_to(data_type: &DataType) -> Option<Cast> {
    match data_type {
        DataType::SmallInt(None)
        | DataType::Int2(None)
        | DataType::Int(None)
        | DataType::Int4(None)
        | DataType::Integer(None)
        | DataType::BigInt(None)
        | DataType::Int8(None) => Some(Cast::Integer),
        DataType::Text | DataType::Varchar(None) | DataType::CharacterVarying(None) => {
            Some(Cast::Text)
        }
        DataType::Uuid => Some(Cast::Uuid),
        DataType::Date => Some(Cast::Date),
        _ => None,
    }
}

/// `expr` as a value that stands in the statement, if it is one.
pub(crate) fn constant(expr: &Expr, uses: &ParameterUses) -> Option<Constant> {
    match expr {
        Expr::Nested(inner) => constant(inner, uses),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
            let inner = constant(expr, uses)?;
            // `- 5::int` is a minus of a cast; `- 'x'` has an operator of its own to choose.
            (inner.cast.is_none() && !inner.negative)
                .then_some(Constant { negative: true, ..inner })
        }
        Expr::Cast { expr, data_type, format: None, .. } => {
            let inner = constant(expr, uses)?;
            let cast = cast_to(data_type)?;
            inner.cast.is_none().then_some(Constant { cast: Some(cast), ..inner })
        }
        // `DATE '2026-11-28'`: the same as its cast.
        Expr::TypedString(typed) => match (cast_to(&typed.data_type), &typed.value.value) {
            (Some(cast), Value::SingleQuotedString(text)) => {
                let place = Place::Text(text.clone());
                Some(Constant { place, negative: false, cast: Some(cast) })
            }
            _ => None,
        },
        Expr::Value(value) => {
            let place = match &value.value {
                Value::Placeholder(name) => placeholder(name, uses)?,
                Value::Null => Place::Null,
                Value::SingleQuotedString(text) => Place::Text(text.clone()),
                Value::Number(text, false) => Place::Number(text.clone()),
                _ => return None,
            };
            Some(Constant { place, negative: false, cast: None })
        }
        _ => None,
    }
}

/// `$1` is a parameter, `$h1` a literal.
fn placeholder(name: &str, uses: &ParameterUses) -> Option<Place> {
    if let Some(number) = name.strip_prefix("$h") {
        return number.parse::<usize>().ok()?.checked_sub(1).map(Place::Literal);
    }
    let index = name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?;
    Some(Place::Parameter { index, alone: uses.alone(index) })
}

/// The parts of a chain of AND.
pub(crate) fn conjuncts<'e>(expr: &'e Expr, found: &mut Vec<&'e Expr>) {
    match expr {
        Expr::Nested(inner) => conjuncts(inner, found),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            conjuncts(left, found);
            conjuncts(right, found);
        }
        other => found.push(other),
    }
}

/// The two seats whose keys `expr` says are equal, in the order in which they are written.
pub(crate) fn equal_keys(
    expr: &Expr,
    scopes: &Scopes<'_>,
    seats: &Seats,
) -> Option<(usize, usize)> {
    let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = expr else { return None };
    let (one, one_column) = scopes.column(left, seats)?;
    let (other, other_column) = scopes.column(right, seats)?;
    let alike = same_slot(&seats.0[one].columns[one_column], &seats.0[other].columns[other_column])
        && seats.same_group(one, other);
    (one != other && alike).then_some((one, other))
}

/// Whether equal values of two columns have the same slot.
fn same_slot(one: &KeyColumn, other: &KeyColumn) -> bool {
    one.function == other.function && one.key_type == other.key_type
}
