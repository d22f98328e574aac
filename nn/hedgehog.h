#pragma once
/// Everything a user of the library needs.
///
///   #include <hedgehog/nn/hedgehog.h>
///   using namespace hedgehog;
///
///   Tensor w = parameter({3, 2}, "w");
///   Tensor x = constant({4, 3}, {...});
///   Tensor loss = mean(square(matmul(x, w)));
///   backward(loss);
///   print(w.grad());
#include "core/device.h"
#include "core/error.h"
#include "core/executor.h"
#include "core/gradcheck.h"
#include "core/random.h"
#include "core/tape.h"
#include "core/text.h"
#include "nn/attention.h"
#include "nn/distillation.h"
#include "nn/gpt.h"
#include "nn/layers.h"
#include "nn/lora.h"
#include "nn/parameters.h"
#include "nn/recompute.h"
#include "nn/step_session.h"
#include "ops/ops.h"
