// The hyper-parameters of one step of Adam, and the numbers that the kernels of all devices compute with.
#pragma once

#include <cmath>
#include <cstdint>

namespace memory_layers {

// As the operator rows_adam_ takes them; see memory_layers/reference/rows.py.
struct AdamStep {
  double scale;  // factor of the gradient
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;  // number of this step, from 1
};

// A: float or double. Each number is rounded once, from double.
template <class A>
struct AdamNumbers {
  A scale, beta1, beta2, eps;
  A rest1, rest2;  // 1 - beta
  A decay;         // factor of the values before the step
  A size;          // the learning rate with the corrections of both moments' bias
};

template <class A>
AdamNumbers<A> numbers_of(const AdamStep& adam) {
  const double size = adam.lr * std::sqrt(1 - std::pow(adam.beta2, adam.step)) / (1 - std::pow(adam.beta1, adam.step));
  return {static_cast<A>(adam.scale),
          static_cast<A>(adam.beta1),
          static_cast<A>(adam.beta2),
          static_cast<A>(adam.eps),
          static_cast<A>(1 - adam.beta1),
          static_cast<A>(1 - adam.beta2),
          static_cast<A>(1 - adam.lr * adam.weight_decay),
          static_cast<A>(size)};
}

}  // namespace memory_layers
