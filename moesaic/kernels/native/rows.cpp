// What a training step does to rows between its matmuls, in one sweep each: norms, gated
// activations, and the cross-entropy of logits with its gradient.
//
// Values are float32 or bfloat16; whatever is computed with them is float32. Rows are divided among
// the threads alike at every call, so the same input gives the same bits.
#include <omp.h>

#include <vector>

#include "attention.h"
#include "dot.h"

namespace moesaic {
namespace {

inline void put(float* to, float value) { *to = value; }
inline void put(uint16_t* to, float value) { *to = narrow(value); }

template <typename T>
void norm_rows(const T* x, const T* weight, int64_t rows, int64_t width, float eps, int threads, T* out,
               float* scales) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    const T* row = x + r * width;
    T* to = out + r * width;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += widened(row[i]) * widened(row[i]);
    const float scale = 1.0f / std::sqrt(sum / float(width) + eps);
    scales[r] = scale;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) put(to + i, widened(row[i]) * scale * widened(weight[i]));
  }
}

// d_weights is [threads, width], added up by the caller.
template <typename T>
void norm_rows_backward(const T* grad, const T* x, const T* weight, const float* scales, int64_t rows,
                        int64_t width, int threads, T* d_x, float* d_weights) {
#pragma omp parallel num_threads(threads)
  {
    float* d_weight = d_weights + int64_t(omp_get_thread_num()) * width;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const T *row = x + r * width, *g = grad + r * width;
      T* to = d_x + r * width;
      const float scale = scales[r];
      float along = 0.0f;
#pragma omp simd reduction(+ : along)
      for (int64_t i = 0; i < width; i++) {
        const float both = widened(g[i]) * widened(row[i]) * scale;
        d_weight[i] += both;
        along += both * widened(weight[i]);
      }
      along /= float(width);
#pragma omp simd
      for (int64_t i = 0; i < width; i++)
        put(to + i, (widened(g[i]) * widened(weight[i]) - widened(row[i]) * scale * along) * scale);
    }
  }
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Rows of gate and up begin `step` values apart; `weights` of the rows may be null, for 1.
template <typename T>
void gated_rows(const T* gate, const T* up, int64_t step, const float* weights, int64_t rows,
                int64_t width, int threads, T* out) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    const T *g = gate + r * step, *u = up + r * step;
    T* to = out + r * width;
    const float weight = weights ? weights[r] : 1.0f;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
      const float x = widened(g[i]);
      put(to + i, x * sigmoid(x) * widened(u[i]) * weight);
    }
  }
}

// From the gradient of the activation, without its weight: gradients of gate and up, with it. Where
// they are asked for, the weighted activation and the gradient of each row's weight.
template <typename T>
void gated_rows_backward(const T* grad, const T* gate, const T* up, int64_t step, const float* weights,
                         int64_t rows, int64_t width, int threads, T* d_gate, T* d_up, T* active,
                         float* d_weights) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> unwanted(active ? 0 : width);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const T *d = grad + r * width, *g = gate + r * step, *u = up + r * step;
      T *to_gate = d_gate + r * step, *to_up = d_up + r * step;
      T* to = active ? active + r * width : unwanted.data();
      const float weight = weights ? weights[r] : 1.0f;
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; i++) {
        const float x = widened(g[i]), other = widened(u[i]), given = widened(d[i]);
        const float share = sigmoid(x), silu = x * share;
        sum += given * silu * other;
        put(to_up + i, given * weight * silu);
        put(to_gate + i, given * weight * other * share * (1.0f + x * (1.0f - share)));
        put(to + i, silu * other * weight);
      }
      if (d_weights) d_weights[r] = sum;
    }
  }
}

// The loss of each row, and its gradient in place of the logits.
template <typename T>
void cross_entropy_rows(T* logits, const int64_t* labels, int64_t rows, int64_t width, int threads,
                        bool wants_grad, float* losses) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> shares(width);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      T* row = logits + r * width;
      float highest = widened(row[0]), total = 0.0f;
#pragma omp simd reduction(max : highest)
      for (int64_t i = 0; i < width; i++) highest = std::max(highest, widened(row[i]));
      float* share = shares.data();
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < width; i++) total += share[i] = exponential(widened(row[i]) - highest);
      losses[r] = std::log(total) + highest - widened(row[labels[r]]);
      if (!wants_grad) continue;
      const float scale = 1.0f / total;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) put(row + i, share[i] * scale);
      put(row + labels[r], share[labels[r]] * scale - 1.0f);
    }
  }
}

// Softmax in place of matrices of scores. Row r of each sees its first `seen` + r values, of which
// those of minus infinity weigh nothing either.
template <typename T>
void softmax_rows(T* scores, int64_t matrices, int64_t rows, int64_t width, int64_t seen, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> shares(width);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < matrices * rows; r++) {
      T* row = scores + r * width;
      float* share = shares.data();
      const int64_t visible = std::min(width, seen + r % rows);
      float highest = widened(row[0]), total = 0.0f;
#pragma omp simd reduction(max : highest)
      for (int64_t i = 0; i < visible; i++) highest = std::max(highest, widened(row[i]));
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < visible; i++) {
        const float x = widened(row[i]);
        total += share[i] = x < -1e38f ? 0.0f : exponential(x - highest);
      }
      const float scale = 1.0f / total;
#pragma omp simd
      for (int64_t i = 0; i < visible; i++) put(row + i, share[i] * scale);
      std::fill(row + visible, row + width, T(0));
    }
  }
}

// Gradients of scores in place of those of weights.
template <typename T>
void softmax_rows_backward(T* grads, const T* weights, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    T* grad = grads + r * width;
    const T* weight = weights + r * width;
    float along = 0.0f;
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < width; i++) along += widened(grad[i]) * widened(weight[i]);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) put(grad + i, widened(weight[i]) * (widened(grad[i]) - along));
  }
}

// sums += values, for matrices whose sums lie `step` apart.
template <typename T>
void add_matrices(float* sums, int64_t step, const T* values, int64_t matrices, int64_t size, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t m = 0; m < matrices; m++) {
    float* to = sums + m * step;
    const T* from = values + m * size;
#pragma omp simd
    for (int64_t i = 0; i < size; i++) to[i] += widened(from[i]);
  }
}

}  // namespace
}  // namespace moesaic

// Each function twice: for float32 and for bfloat16.
#define MOESAIC_ROWS(suffix, T)                                                                          \
  void moesaic_norm_##suffix(const T* x, const T* weight, int64_t rows, int64_t width, float eps,        \
                             int32_t threads, T* out, float* scales) {                                   \
    moesaic::norm_rows(x, weight, rows, width, eps, threads, out, scales);                               \
  }                                                                                                      \
  void moesaic_norm_backward_##suffix(const T* grad, const T* x, const T* weight, const float* scales,   \
                                      int64_t rows, int64_t width, int32_t threads, T* d_x,              \
                                      float* d_weights) {                                                \
    moesaic::norm_rows_backward(grad, x, weight, scales, rows, width, threads, d_x, d_weights);          \
  }                                                                                                      \
  void moesaic_gated_##suffix(const T* gate, const T* up, int64_t step, const float* weights,            \
                              int64_t rows, int64_t width, int32_t threads, T* out) {                    \
    moesaic::gated_rows(gate, up, step, weights, rows, width, threads, out);                             \
  }                                                                                                      \
  void moesaic_gated_backward_##suffix(const T* grad, const T* gate, const T* up, int64_t step,          \
                                       const float* weights, int64_t rows, int64_t width,                \
                                       int32_t threads, T* d_gate, T* d_up, T* active,                   \
                                       float* d_weights) {                                               \
    moesaic::gated_rows_backward(grad, gate, up, step, weights, rows, width, threads, d_gate, d_up,      \
                                 active, d_weights);                                                     \
  }                                                                                                      \
  void moesaic_cross_entropy_##suffix(T* logits, const int64_t* labels, int64_t rows, int64_t width,     \
                                      int32_t threads, int32_t wants_grad, float* losses) {              \
    moesaic::cross_entropy_rows(logits, labels, rows, width, threads, wants_grad, losses);               \
  }                                                                                                      \
  void moesaic_softmax_##suffix(T* scores, int64_t matrices, int64_t rows, int64_t width, int64_t seen,  \
                                int32_t threads) {                                                       \
    moesaic::softmax_rows(scores, matrices, rows, width, seen, threads);                                 \
  }                                                                                                      \
  void moesaic_softmax_backward_##suffix(T* grads, const T* weights, int64_t rows, int64_t width,        \
                                         int32_t threads) {                                              \
    moesaic::softmax_rows_backward(grads, weights, rows, width, threads);                                \
  }                                                                                                      \
  void moesaic_add_##suffix(float* sums, int64_t step, const T* values, int64_t matrices, int64_t size,  \
                            int32_t threads) {                                                           \
    moesaic::add_matrices(sums, step, values, matrices, size, threads);                                  \
  }

extern "C" {
MOESAIC_ROWS(float32, float)
MOESAIC_ROWS(bfloat16, uint16_t)
}
