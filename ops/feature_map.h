#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// Feature map of linear attention, one learnt matrix a head.
///
///   u = x W_h + b_h   (u = x without weight)
///
///   map                 phi                                                F
///   "hedgehog"          [exp(u), exp(-u)]                                  2 D'   the default everywhere
///   "hedgehog-softmax"  [softmax(u), softmax(-u)], two softmaxes           2 D'
///   "hedgehog-joint"    softmax([2u, -2u]), one softmax over all 2 D'      2 D'
///   "exp"               exp(temperature u)                                 D'
///   "elu"               max(1 + ELU(u), 1e-12): u + 1 above 0, else e^u    D'
///   "relu"              max(u, 1e-6); with weight and bias: T2R            D'
///   "identity"          u: x already holds features                        D'
///
/// Taylor, cosFormer and Performer features are ops of their own: taylor_features, cosformer_features, performer_features.
///
/// The three Hedgehog maps are different functions and their checkpoints are not interchangeable.
///
/// x            (B, T, H, D)   f32 | f64 | bf16 (CUDA); may be rows with a stride
/// weight       (H, D, D')     dtype of x, or none: then D' = D
/// bias         (H, D')        dtype of x, or none; needs weight
/// temperature  factor of "exp", unitless; 1 for all other maps
/// log          true: ln(phi) instead of phi, without overflow; for the Hedgehog maps and "exp"
/// returns      (B, T, H, F)   dtype of x
///
/// Backward: with g = dphi * phi (g = dy when log is true), plus and minus its halves:
///             hedgehog          du = g+ - g-
///             hedgehog-softmax  du = (g+ - phi+ sum(g+)) - (g- - phi- sum(g-))
///             hedgehog-joint    du = 2 ((g+ - phi+ sum(g)) - (g- - phi- sum(g)))
///             exp               du = temperature g
///             elu               du = dphi min(phi, 1), 0 at the floor;   relu: dphi, 0 at the floor
///           dx = du W^T;  dweight = sum over b, t of x^T du;  dbias = sum over b, t of du.
/// Saved:    nothing; reads x, weight and phi.
/// Throws:   ShapeError on an unknown map, wrong shapes or dtypes, bias without weight, log of a map without one,
///           a temperature with another map than "exp".
/// Source:   Zhang et al. 2024, arXiv:2402.04347, section 4.2 and appendix A.3; "hedgehog-softmax": the authors'
///           LoLCATs, arXiv:2410.10254, appendix D; "hedgehog-joint": flash-linear-attention; "elu": arXiv:2006.16236;
///           T2R: arXiv:2103.13076.
Tensor feature_map(const Tensor& x, const Tensor& weight = {}, const Tensor& bias = {}, const std::string& map = "hedgehog",
                   double temperature = 1, bool log = false, SourceLine where = SourceLine::current());

}  // namespace hedgehog
