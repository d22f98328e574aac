#include "cuda/kernels.h"

namespace hedgehog::cuda {

const KernelTable& kernels() {
  static const KernelTable table = [] {
    KernelTable t;
    register_elementwise(t);
    register_reduce(t);
    register_shape(t);
    register_gather(t);
    register_matmul(t);
    register_linear(t);
    register_mlp(t);
    register_softmax(t);
    register_norm(t);
    register_norm_linear(t);
    register_embedding(t);
    register_rotary(t);
    register_short_convolution(t);
    register_feature_map(t);
    register_taylor_features(t);
    register_cosformer_features(t);
    register_performer_features(t);
    register_linear_attention(t);
    register_linear_attention_step(t);
    register_norm_linear_attention_step(t);
    register_softmax_attention(t);
    register_softmax_attention_step(t);
    register_hybrid_attention(t);
    register_hybrid_attention_step(t);
    register_attention_cross_entropy(t);
    register_sample_token(t);
    register_cross_entropy(t);
    register_classifier_cross_entropy(t);
    register_dropout(t);
    register_optimizer(t);
    return t;
  }();
  return table;
}

}  // namespace hedgehog::cuda
