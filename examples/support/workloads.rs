//! Layers and blocks to time: what they are, and the lines that describe them.
#![allow(dead_code, reason = "each program uses its part")]

pub(crate) mod layers;
pub(crate) mod lists;
pub(crate) mod random;

use core::{error, fmt};

use mbconv::Activation::{self, Gelu, HardSwish, Identity, Relu, Relu6, Silu};
use mbconv::{Depthwise, Isa, Pointwise, Shape};

use layers::Loaded;

/// The columns of a line.
pub(crate) const COLUMNS: &str = "name kind H C_in C_exp C_out stride kernel";
/// What a ninth column may say of a block's inner activations.
const ACTIVATIONS: [(&str, Activation); 6] = [
    ("identity", Identity),
    ("relu", Relu),
    ("relu6", Relu6),
    ("hardswish", HardSwish),
    ("silu", Silu),
    ("gelu", Gelu),
];
/// f32 in the tensors of a workload: 1 GiB, far above any real layer.
const MOST: usize = 1 << 28;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 1x1, depthwise, 1x1.
    Bottleneck,
    /// Depthwise, 1x1.
    Separable,
    /// 3x3 of stride 2 over RGB, depthwise, 1x1: how networks begin.
    Stem,
    /// Depthwise, LayerNorm, 1x1 to four times the channels, 1x1, scale.
    ConvNext,
    Depthwise,
    Pointwise,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Bottleneck,
        Self::Separable,
        Self::Stem,
        Self::ConvNext,
        Self::Depthwise,
        Self::Pointwise,
    ];

    /// As lines have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bottleneck => "ir",
            Self::Separable => "ds",
            Self::Stem => "st",
            Self::ConvNext => "cnx",
            Self::Depthwise => "dw",
            Self::Pointwise => "pw",
        }
    }

    pub(crate) fn is_block(self) -> bool {
        !matches!(self, Self::Depthwise | Self::Pointwise)
    }
}

/// A block or a single layer for square images, batch 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Rows and columns of the input.
    pub(crate) side: usize,
    /// Channels of the input, of the depthwise convolution, of the output.
    pub(crate) c: [usize; 3],
    pub(crate) stride: usize,
    /// Rows and columns of the depthwise kernel.
    pub(crate) kernel: usize,
    /// After expand and depthwise (after expand alone in a ConvNeXt block), and after
    /// project.
    pub(crate) activations: [Activation; 2],
    pub(crate) residual: bool,
    /// Channels between the two stages of squeeze-and-excite, and the gate.
    pub(crate) excite: Option<(usize, Activation)>,
    /// How often the network has it in a row.
    pub(crate) repeats: usize,
}

/// Why a line is no workload.
#[derive(Debug, PartialEq)]
pub(crate) enum Error {
    /// It does not say what a workload is.
    Malformed(String),
    /// Of a kind that this crate does not have.
    Unsupported { name: String, kind: String },
    /// The crate refuses its sizes.
    Refused(mbconv::Error),
    /// It takes more than [`MOST`].
    TooLarge,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => f.write_str(why),
            Self::Unsupported { name, kind } => {
                write!(f, "{name}: kind {kind} is not supported yet")
            }
            Self::Refused(error) => error.fmt(f),
            Self::TooLarge => {
                write!(f, "its tensors take more than {} MiB", (MOST * size_of::<f32>()) >> 20)
            }
        }
    }
}

impl error::Error for Error {}

impl From<mbconv::Error> for Error {
    fn from(error: mbconv::Error) -> Self {
        Self::Refused(error)
    }
}

impl Workload {
    /// Reads a line of [`COLUMNS`]. What it returns can be loaded, planned and run.
    ///
    /// Blocks have relu6 inside, ConvNeXt's gelu, but what a ninth column says; a linear
    /// projection, and a residual where the shapes allow it; single layers have no activation.
    /// A block's kernel of 1 stands for 3, ConvNeXt's for 7.
    pub(crate) fn parse(line: &str) -> Result<Self, Error> {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[name, kind, side, c_in, c_exp, c_out, stride, kernel, ref inner @ ..] = &columns[..]
        else {
            let n = columns.len();
            return Err(Error::Malformed(format!("{n} columns, not the 8 of `{COLUMNS}`")));
        };
        let number = |column: &str, text: &str| {
            let wrong = |error| Error::Malformed(format!("{column} is {text:?}: {error}"));
            text.parse::<usize>().map_err(wrong)
        };
        let (side, stride) = (number("H", side)?, number("stride", stride)?);
        let c = [number("C_in", c_in)?, number("C_exp", c_exp)?, number("C_out", c_out)?];
        let kernel = number("kernel", kernel)?;
        let [c_in, c_exp, c_out] = c;
        let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
            return Err(Error::Unsupported { name: name.to_owned(), kind: kind.to_owned() });
        };
        let (holds, rule) = match kind {
            Kind::Bottleneck => (true, ""),
            Kind::Separable => (c_exp == c_in, "C_exp = C_in"),
            Kind::Stem => (c_in == 3, "C_in = 3"),
            Kind::Depthwise => (c_exp == c_in && c_out == c_in, "C_in = C_exp = C_out"),
            Kind::ConvNext => {
                let holds = c_exp == c_in && c_out == c_in && stride == 1;
                (holds, "C_in = C_exp = C_out, stride 1")
            }
            Kind::Pointwise => {
                (c_exp == c_in && [stride, kernel] == [1, 1], "C_exp = C_in, stride 1, kernel 1")
            }
        };
        if !holds {
            return Err(Error::Malformed(format!("kind {} has {rule}", kind.name())));
        }
        let block = kind.is_block();
        let inner = match *inner {
            [] if kind == Kind::ConvNext => Gelu,
            [] if block => Relu6,
            [] => Identity,
            [inner] if block => {
                let known = ACTIVATIONS.iter().find(|(name, _)| *name == inner);
                let wrong = || Error::Malformed(format!("no activation is named {inner:?} here"));
                known.ok_or_else(wrong)?.1
            }
            _ => {
                let why = format!("more than `{COLUMNS}` and a block's activation");
                return Err(Error::Malformed(why));
            }
        };
        let workload = Self {
            name: name.to_owned(),
            kind,
            side,
            c,
            stride,
            kernel: match kind {
                Kind::ConvNext if kernel == 1 => 7,
                _ if block && kernel == 1 => 3,
                _ => kernel,
            },
            activations: [inner, Identity],
            residual: block && kind != Kind::Stem && stride == 1 && c_in == c_out,
            excite: None,
            repeats: 1,
        };
        workload.check()?;
        Ok(workload)
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape::new(1, self.side, self.side)
    }

    /// Channels that the projection takes.
    pub(crate) fn projected(&self) -> usize {
        if self.kind == Kind::ConvNext { 4 * self.c[1] } else { self.c[1] }
    }

    /// Rows and columns of what the depthwise convolution takes.
    pub(crate) fn middle(&self) -> usize {
        if self.kind == Kind::Stem { self.side.div_ceil(2) } else { self.side }
    }

    /// Rows and columns of the output.
    pub(crate) fn output(&self) -> usize {
        self.middle().div_ceil(self.stride)
    }

    /// Lets the crate judge the sizes before any of them is allocated: a layer
    /// that is given no weights says how many it wants.
    fn check(&self) -> Result<(), Error> {
        let bare = Loaded::bare(self.clone());
        let isa = Isa::from_name("portable")?;
        let wanted = |error: Option<mbconv::Error>| match error {
            Some(mbconv::Error::Length { expected, .. }) => Ok(expected),
            Some(error) => Err(error),
            None => Ok(0),
        };
        let pointwise = |params| wanted(Pointwise::with_isa(&params, isa).err());
        let mut elements = bare.expand().map_or(Ok(0), pointwise)?;
        if self.kind != Kind::Pointwise {
            let depthwise = Depthwise::with_isa(&bare.depthwise(), isa).err();
            elements = elements.saturating_add(wanted(depthwise)?);
        }
        if self.kind != Kind::Depthwise {
            elements = elements.saturating_add(pointwise(bare.project())?);
        }
        // The stride is not 0: the depthwise layer would have said so.
        let [c_in, c_exp, c_out] = self.c;
        for (side, channels) in [(self.side, c_in), (self.middle(), c_exp), (self.output(), c_out)]
        {
            let tensor = Shape::new(1, side, side).elements(channels)?;
            elements = elements.saturating_add(tensor);
        }
        if elements > MOST { Err(Error::TooLarge) } else { Ok(()) }
    }
}
