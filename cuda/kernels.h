#pragma once
#include <map>
#include <string>

#include "core/op.h"

namespace hedgehog::cuda {

/// Bytes of workspace that a call needs on the device, from its attributes and inputs.
using WorkspaceBytes = std::function<std::int64_t(const Attributes&, std::span<const Meta>)>;
/// What forward keeps for backward on the device alone, after what the op keeps everywhere.
using KeptMetas = std::function<std::vector<Meta>(const Attributes&, std::span<const Meta>)>;

/// What an op does on the device.
struct DeviceOp {
  Kernel forward = {};
  Kernel backward = {};
  WorkspaceBytes forward_workspace = {};   // none: 0
  WorkspaceBytes backward_workspace = {};
  KeptMetas kept = {};                     // none: nothing
};

/// By name of the op.
using KernelTable = std::map<std::string, DeviceOp>;

// one for each kernel file, called by kernels()
void register_elementwise(KernelTable& table);
void register_reduce(KernelTable& table);
void register_shape(KernelTable& table);
void register_gather(KernelTable& table);
void register_matmul(KernelTable& table);
void register_linear(KernelTable& table);
void register_mlp(KernelTable& table);
void register_softmax(KernelTable& table);
void register_norm(KernelTable& table);
void register_norm_linear(KernelTable& table);
void register_embedding(KernelTable& table);
void register_rotary(KernelTable& table);
void register_short_convolution(KernelTable& table);
void register_feature_map(KernelTable& table);
void register_taylor_features(KernelTable& table);
void register_cosformer_features(KernelTable& table);
void register_performer_features(KernelTable& table);
void register_linear_attention(KernelTable& table);
void register_linear_attention_step(KernelTable& table);
void register_norm_linear_attention_step(KernelTable& table);
void register_softmax_attention(KernelTable& table);
void register_softmax_attention_step(KernelTable& table);
void register_hybrid_attention(KernelTable& table);
void register_hybrid_attention_step(KernelTable& table);
void register_attention_cross_entropy(KernelTable& table);
void register_sample_token(KernelTable& table);
void register_cross_entropy(KernelTable& table);
void register_classifier_cross_entropy(KernelTable& table);
void register_dropout(KernelTable& table);
void register_optimizer(KernelTable& table);

/// Every kernel of cuda/, added by plain calls: static initialisers of a static library would vanish.
const KernelTable& kernels();

}  // namespace hedgehog::cuda
