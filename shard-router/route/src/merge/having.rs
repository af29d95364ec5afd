//! HAVING over groups that span sources: judged when a group is whole, with SQL's three values.

use std::cmp::Ordering;

use super::{
    decimal::Decimal,
    row::{Field, broken},
    value::Value,
};
use crate::{RefusalClass, Refused};

/// A condition on a whole group. `C` is what its numbers are: constants of a statement, or their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Having<C> {
    /// All of them.
    And(Vec<Self>),
    /// One of them.
    Or(Vec<Self>),
    /// The opposite.
    Not(Box<Self>),
    /// Two numbers compared.
    Compare {
        /// What stands on the left.
        left: Operand<C>,
        /// Whether it is true of a left that is less, equal, greater.
        holds: [bool; 3],
        /// What stands on the right.
        right: Operand<C>,
    },
    /// Whether a column of the answer is NULL.
    IsNull(u16),
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand<C> {
    /// A column of the answer, hidden ones included.
    Column(u16),
    /// A number that does not depend on the group.
    Constant(C),
}

/// The value of a constant: a number as PostgreSQL prints it, or NULL.
pub type Number = Option<Box<str>>;

impl<C> Having<C> {
    /// The same condition with each constant made into something else.
    pub(crate) fn map<D, E>(&self, value: &impl Fn(&C) -> Result<D, E>) -> Result<Having<D>, E> {
        let all = |list: &[Self]| {
            list.iter().map(|one| one.map(value)).collect::<Result<Vec<Having<D>>, E>>()
        };
        let side = |side: &Operand<C>| match side {
            Operand::Column(at) => Ok(Operand::Column(*at)),
            Operand::Constant(constant) => value(constant).map(Operand::Constant),
        };
        Ok(match self {
            Self::And(list) => Having::And(all(list)?),
            Self::Or(list) => Having::Or(all(list)?),
            Self::Not(inner) => Having::Not(Box::new(inner.map(value)?)),
            Self::Compare { left, holds, right } => {
                Having::Compare { left: side(left)?, holds: *holds, right: side(right)? }
            }
            Self::IsNull(at) => Having::IsNull(*at),
        })
    }
}

impl Having<Number> {
    /// Refuses to compare what is no exact number.
    pub(super) fn check(&self, fields: &[Field]) -> Result<(), Refused> {
        let field = |at: u16| {
            fields.get(usize::from(at)).ok_or_else(|| broken("fewer columns than it was asked for"))
        };
        match self {
            Self::And(list) | Self::Or(list) => list.iter().try_for_each(|one| one.check(fields)),
            Self::Not(inner) => inner.check(fields),
            Self::IsNull(at) => field(*at).map(drop),
            Self::Compare { left, right, .. } => {
                for side in [left, right] {
                    match side {
                        Operand::Column(at) if !Value::is_exact_number(field(*at)?) => {
                            let cause = format!(
                                "HAVING over groups that span sources compares a value of type {}",
                                field(*at)?.type_oid
                            );
                            let remedy =
                                "Compare integers or numerics, or give a value for the group's key";
                            return Err(Refused::new(RefusalClass::NotMergeable, cause, remedy));
                        }
                        Operand::Column(_) | Operand::Constant(_) => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether it is true of a group; `None` is unknown.
    pub(super) fn judge(
        &self,
        cells: &[Option<Vec<u8>>],
        fields: &[Field],
    ) -> Result<Option<bool>, Refused> {
        match self {
            Self::And(list) => {
                let mut all = Some(true);
                for one in list {
                    match one.judge(cells, fields)? {
                        Some(false) => return Ok(Some(false)),
                        Some(true) => {}
                        None => all = None,
                    }
                }
                Ok(all)
            }
            Self::Or(list) => {
                let mut any = Some(false);
                for one in list {
                    match one.judge(cells, fields)? {
                        Some(true) => return Ok(Some(true)),
                        Some(false) => {}
                        None => any = None,
                    }
                }
                Ok(any)
            }
            Self::Not(inner) => Ok(inner.judge(cells, fields)?.map(|truth| !truth)),
            Self::IsNull(at) => Ok(Some(cells.get(usize::from(*at)).is_none_or(Option::is_none))),
            Self::Compare { left, holds, right } => {
                let (left, right) = (number(left, cells, fields)?, number(right, cells, fields)?);
                let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
                Ok(Some(match left.compare(&right) {
                    Ordering::Less => holds[0],
                    Ordering::Equal => holds[1],
                    Ordering::Greater => holds[2],
                }))
            }
        }
    }
}

fn number(
    side: &Operand<Number>,
    cells: &[Option<Vec<u8>>],
    fields: &[Field],
) -> Result<Option<Value>, Refused> {
    match side {
        Operand::Constant(None) => Ok(None),
        Operand::Constant(Some(text)) => Decimal::parse(text)
            .map(|number| Some(Value::Decimal(number)))
            .ok_or_else(|| broken("a number that is none")),
        Operand::Column(at) => {
            let at = usize::from(*at);
            match (cells.get(at), fields.get(at)) {
                (Some(None), _) => Ok(None),
                (Some(Some(cell)), Some(field)) => {
                    Value::read(cell, field).map(|value| Some(value.widened()))
                }
                _ => Err(broken("fewer columns than it was asked for")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(having: &Having<Number>, cell: Option<&str>) -> Option<bool> {
        let field = Field {
            name: b"n".to_vec(),
            origin: [0; 6],
            type_oid: 1700,
            type_details: [0; 6],
            format: crate::Format::Text,
        };
        let cells = [cell.map(|cell| cell.as_bytes().to_vec())];
        having.check(std::slice::from_ref(&field)).unwrap();
        having.judge(&cells, std::slice::from_ref(&field)).unwrap()
    }

    fn above(number: &str) -> Having<Number> {
        Having::Compare {
            left: Operand::Column(0),
            holds: [false, false, true],
            right: Operand::Constant(Some(number.into())),
        }
    }

    #[test]
    fn null_is_neither_true_nor_false() {
        assert_eq!(judged(&above("2"), None), None);
        assert_eq!(judged(&Having::Not(Box::new(above("2"))), None), None);
        assert_eq!(judged(&Having::Or(vec![above("2"), Having::IsNull(0)]), None), Some(true));
        assert_eq!(
            judged(&Having::And(vec![above("2"), Having::IsNull(0)]), Some("1")),
            Some(false)
        );
        let to_null = Having::Compare {
            left: Operand::Column(0),
            holds: [true; 3],
            right: Operand::Constant(None),
        };
        assert_eq!(judged(&to_null, Some("1")), None);
    }

    #[test]
    fn numbers_are_compared_exactly() {
        assert_eq!(judged(&above("2.50"), Some("2.5")), Some(false));
        assert_eq!(judged(&above("-0.1"), Some("-0.01")), Some(true));
        assert_eq!(
            judged(&above("123456789012345678901"), Some("123456789012345678902")),
            Some(true)
        );
        assert_eq!(judged(&above("1"), Some("NaN")), Some(true));
        assert_eq!(judged(&above("1"), Some("-Infinity")), Some(false));
    }

    #[test]
    fn what_is_no_exact_number_is_refused() {
        let field = |type_oid| Field {
            name: b"n".to_vec(),
            origin: [0; 6],
            type_oid,
            type_details: [0; 6],
            format: crate::Format::Text,
        };
        for (type_oid, fits) in
            [(20, true), (21, true), (23, true), (1700, true), (701, false), (25, false)]
        {
            assert_eq!(above("1").check(&[field(type_oid)]).is_ok(), fits, "{type_oid}");
        }
        assert!(Having::<Number>::IsNull(0).check(&[field(25)]).is_ok());
        assert!(above("1").check(&[]).is_err());
    }
}
