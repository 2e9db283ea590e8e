//! What the pass did and what it left.

use core::fmt;

use tract_core::prelude::DatumType;

/// What [`fuse`](crate::fuse) replaced, what it left, and why.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// One for each operation that was put in, in the order of evaluation.
    pub replaced: Vec<Replaced>,
    /// One for each convolution that stays tract's.
    pub left: Vec<Left>,
}

/// An operation of mbconv and what it stands for.
#[derive(Debug, Clone)]
pub struct Replaced {
    /// The new node's name: that of the last node it stands for.
    pub name: String,
    /// Which operation it is.
    pub part: Part,
    /// Its stages in words.
    pub stages: String,
    /// Names of the nodes that it stands for.
    pub nodes: Vec<String>,
    /// Why it does not reach further: a layer before or after it, or the addition of
    /// the block's input.
    pub limits: Vec<Reason>,
}

/// An operation of mbconv.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `InvertedBottleneck`: a depthwise convolution with at least one of its neighbours.
    Block,
    /// `Depthwise` alone.
    Depthwise,
    /// `Pointwise` alone.
    Pointwise,
}

/// A convolution that was left to tract.
#[derive(Debug, Clone)]
pub struct Left {
    /// The node's name.
    pub name: String,
    /// Why it was left.
    pub reason: Reason,
}

/// Why a convolution is not one of mbconv's, or an operation reaches no further.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// The value between two stages is read elsewhere too.
    Shared {
        /// The node that gives the value.
        node: String,
        /// Its readers.
        readers: usize,
    },
    /// The value between two stages is an output of the model.
    Output {
        /// The node that gives the value.
        node: String,
    },
    /// A neighbour of the depthwise convolution is no pointwise one with an activation
    /// that mbconv has.
    Neighbour {
        /// The node before or after.
        node: String,
        /// Its operation.
        op: String,
    },
    /// The pointwise convolution next to the depthwise one belongs to another block.
    Taken {
        /// The pointwise convolution's last node.
        node: String,
    },
    /// The neighbour has its axes in another order.
    Format {
        /// The neighbour's last node.
        node: String,
    },
    /// What is added to the block's output is not the block's input.
    Residual {
        /// The adding node.
        node: String,
    },
    /// The block's input is added to an output of another shape.
    ResidualShape {
        /// The adding node.
        node: String,
        /// The input's shape.
        input: String,
        /// The output's shape.
        output: String,
    },
    /// Grouped, but not depthwise.
    Grouped {
        /// Groups.
        groups: usize,
        /// Input channels.
        channels: usize,
    },
    /// Neither pointwise nor depthwise, and not a network's first layer before a
    /// depthwise convolution.
    Full {
        /// Height and width.
        kernel: [usize; 2],
        /// Input channels.
        channels: usize,
    },
    /// Weights or bias are not known before the model runs.
    NotConstant,
    /// Not f32.
    DatumType(DatumType),
    /// The image has not two axes but so many.
    Rank(usize),
    /// Output sizes that are rounded up, which mbconv has not.
    Padding,
    /// mbconv refuses it.
    Refused(mbconv::Error),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared { node, readers } => write!(f, "{node} has {readers} readers"),
            Self::Output { node } => write!(f, "{node} is an output of the model"),
            Self::Neighbour { node, op } => write!(f, "next to it is {node} ({op})"),
            Self::Taken { node } => write!(f, "{node} is in another block"),
            Self::Format { node } => write!(f, "{node} has its axes in another order"),
            Self::Residual { node } => write!(f, "{node} adds what is not the block's input"),
            Self::ResidualShape { node, input, output } => {
                write!(f, "{node} adds the input, {input}, to {output}")
            }
            Self::Grouped { groups, channels } => {
                write!(f, "{groups} groups of {channels} channels are not depthwise")
            }
            Self::Full { kernel: [h, w], channels } => {
                write!(f, "a full {h}x{w} convolution over {channels} channels")
            }
            Self::NotConstant => f.write_str("weights or bias are not constant"),
            Self::DatumType(dt) => write!(f, "{dt:?} is not f32"),
            Self::Rank(rank) => write!(f, "the image has {rank} axes, not 2"),
            Self::Padding => f.write_str("its output size is rounded up"),
            Self::Refused(error) => write!(f, "mbconv: {error}"),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Block => "block",
            Self::Depthwise => "depthwise",
            Self::Pointwise => "pointwise",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Replaced { name, part, stages, nodes, limits } in &self.replaced {
            write!(f, "{part:9}  {name}: {stages} ({} nodes)", nodes.len())?;
            limits.iter().try_for_each(|limit| write!(f, "; {limit}"))?;
            writeln!(f)?;
        }
        for Left { name, reason } in &self.left {
            writeln!(f, "left       {name}: {reason}")?;
        }
        let count = |part: Part| self.replaced.iter().filter(|r| r.part == part).count();
        write!(
            f,
            "{} blocks, {} depthwise and {} pointwise convolutions replaced, {} convolutions left",
            count(Part::Block),
            count(Part::Depthwise),
            count(Part::Pointwise),
            self.left.len()
        )
    }
}
