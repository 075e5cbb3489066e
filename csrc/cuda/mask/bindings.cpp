// Arrays come as addresses, 0 for none, and are checked by the Python side, oes_fast/cuda_kernels/: no header of torch
// is needed here, and the kernels run with any version of it.
#include "cuda/mask/bindings.h"

#include <cmath>

#include "cuda/core/platform.h"
#include "cuda/mask/gumbel_mask.h"
#include "cuda/mask/mask_update.h"
#include "cuda/mask/masked_adam.h"
#include "cuda/mask/noise.h"

namespace py = pybind11;

namespace oes::cuda::mask {
namespace {

using Address = uintptr_t;

template <typename T>
T* array(Address address) {
  return reinterpret_cast<T*>(address);
}

// f(T()) with the type of the elements.
template <typename F>
void with_type(bool float64, const F& f) {
  if (float64) {
    f(double());
  } else {
    f(float());
  }
}

// Where a launch goes.
struct Place {
  int device;
  Address stream;

  cudaStream_t cuda_stream() const {
    return reinterpret_cast<cudaStream_t>(stream);
  }
};

NoiseSource noise_source(int64_t seed, int64_t step, Address seeds, Address ticks) {
  return {seed, step, array<const int64_t>(seeds), array<const int64_t>(ticks)};
}

void bind_gumbel_mask(py::module_& module) {
  module.def(
      "gumbel_mask",
      [](const Place& place, bool float64, int64_t networks, int64_t numel, int64_t seed, int64_t step, Address seeds,
         Address ticks, double temperature, Address w0, int64_t w0_stride, Address logits, Address masked) {
        const DeviceGuard guard(place.device);
        with_type(float64, [&](auto zero) {
          using T = decltype(zero);
          GumbelMask<T> a{};
          a.noise = noise_source(seed, step, seeds, ticks);
          a.networks = networks;
          a.numel = numel;
          a.inverse_temperature = static_cast<T>(1 / temperature);
          a.w0 = array<const T>(w0);
          a.w0_stride = w0_stride;
          a.logits = array<const T>(logits);
          a.masked = array<T>(masked);
          gumbel_mask(a, place.cuda_stream());
        });
      },
      py::kw_only(), py::arg("place"), py::arg("float64"), py::arg("networks"), py::arg("numel"), py::arg("seed"),
      py::arg("step"), py::arg("seeds"), py::arg("ticks"), py::arg("temperature"), py::arg("w0"), py::arg("w0_stride"),
      py::arg("logits"), py::arg("masked"), py::call_guard<py::gil_scoped_release>(),
      "Writes the masked weights of all networks.");
  module.def(
      "gumbel_mask_backward",
      [](const Place& place, bool float64, int64_t networks, int64_t numel, int64_t seed, int64_t step, Address seeds,
         Address ticks, double temperature, Address grad, Address w0, int64_t w0_stride, Address logits,
         Address grad_w0, Address grad_logits) {
        const DeviceGuard guard(place.device);
        with_type(float64, [&](auto zero) {
          using T = decltype(zero);
          GumbelMaskBackward<T> a{};
          a.noise = noise_source(seed, step, seeds, ticks);
          a.networks = networks;
          a.numel = numel;
          a.inverse_temperature = static_cast<T>(1 / temperature);
          a.grad = array<const T>(grad);
          a.w0 = array<const T>(w0);
          a.w0_stride = w0_stride;
          a.logits = array<const T>(logits);
          a.grad_w0 = array<T>(grad_w0);
          a.grad_logits = array<T>(grad_logits);
          gumbel_mask_backward(a, place.cuda_stream());
        });
      },
      py::kw_only(), py::arg("place"), py::arg("float64"), py::arg("networks"), py::arg("numel"), py::arg("seed"),
      py::arg("step"), py::arg("seeds"), py::arg("ticks"), py::arg("temperature"), py::arg("grad"), py::arg("w0"),
      py::arg("w0_stride"), py::arg("logits"), py::arg("grad_w0"), py::arg("grad_logits"),
      py::call_guard<py::gil_scoped_release>(), "Writes the gradients that are asked for.");
}

void bind_mask_update(py::module_& module) {
  module.def(
      "mask_update",
      [](const Place& place, bool float64, int64_t networks, int64_t numel, int64_t seed, int64_t step, Address seeds,
         Address ticks, double temperature, double kl, double density, double lr, double beta1, double beta2,
         double eps, Address corrections, int64_t rows, Address logits, Address grad, Address w0, int64_t w0_stride,
         Address exp_avg, Address exp_avg_sq, Address kl_value, Address kl_sums, Address kl_tickets) {
        const DeviceGuard guard(place.device);
        with_type(float64, [&](auto zero) {
          using T = decltype(zero);
          const NoiseSource noise = noise_source(seed, step, seeds, ticks);
          const Adam<T> adam({lr, beta1, beta2, eps}, step, noise.ticks, array<const T>(corrections), rows);
          const MaskUpdate<T> a{
              noise,
              adam,
              networks,
              numel,
              static_cast<T>(1 / temperature),
              static_cast<T>(kl),
              static_cast<T>(std::log(density / (1 - density))),
              static_cast<T>(std::log(density)),
              static_cast<T>(std::log1p(-density)),
              array<const T>(grad),
              array<const T>(w0),
              w0_stride,
              array<T>(logits),
              array<T>(exp_avg),
              array<T>(exp_avg_sq),
              array<T>(kl_value),
              array<double>(kl_sums),
              array<unsigned>(kl_tickets),
              false};
          mask_update(a, place.cuda_stream());
        });
      },
      py::kw_only(), py::arg("place"), py::arg("float64"), py::arg("networks"), py::arg("numel"), py::arg("seed"),
      py::arg("step"), py::arg("seeds"), py::arg("ticks"), py::arg("temperature"), py::arg("kl"), py::arg("density"),
      py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("corrections"), py::arg("rows"),
      py::arg("logits"), py::arg("grad"), py::arg("w0"), py::arg("w0_stride"), py::arg("exp_avg"),
      py::arg("exp_avg_sq"), py::arg("kl_value"), py::arg("kl_sums"), py::arg("kl_tickets"),
      py::call_guard<py::gil_scoped_release>(),
      "Updates logits and moments; writes the KL sum of each network unless kl_value is 0.");
  module.def(
      "kl_blocks", &kl_blocks, py::arg("numel"), "How many float64 mask_update needs for the KL sum of a network.");
}

void bind_masked_adam(py::module_& module) {
  module.def(
      "masked_adam",
      [](const Place& place, bool float64, int64_t networks, int64_t numel, int64_t step, Address ticks, double lr,
         double beta1, double beta2, double eps, Address corrections, int64_t rows, Address weights, Address grad,
         Address exp_avg, Address exp_avg_sq, Address mask, int64_t mask_stride) {
        const DeviceGuard guard(place.device);
        with_type(float64, [&](auto zero) {
          using T = decltype(zero);
          const Adam<T> adam(
              {lr, beta1, beta2, eps}, step, array<const int64_t>(ticks), array<const T>(corrections), rows);
          const MaskedAdam<T> a{
              adam,
              networks,
              numel,
              array<T>(weights),
              array<const T>(grad),
              array<T>(exp_avg),
              array<T>(exp_avg_sq),
              array<const uint8_t>(mask),
              mask_stride,
              false,
              false};
          masked_adam(a, place.cuda_stream());
        });
      },
      py::kw_only(), py::arg("place"), py::arg("float64"), py::arg("networks"), py::arg("numel"), py::arg("step"),
      py::arg("ticks"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("corrections"),
      py::arg("rows"), py::arg("weights"), py::arg("grad"), py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("mask"),
      py::arg("mask_stride"), py::call_guard<py::gil_scoped_release>(), "Updates weights and moments.");
}

void bind_noise(py::module_& module) {
  module.def(
      "random_bits",
      [](const Place& place, int64_t numel, int64_t seed, int64_t step, int64_t stream, Address words) {
        const DeviceGuard guard(place.device);
        random_bits({seed, step, static_cast<uint32_t>(stream), numel, array<int64_t>(words)}, place.cuda_stream());
      },
      py::kw_only(), py::arg("place"), py::arg("numel"), py::arg("seed"), py::arg("step"), py::arg("stream"),
      py::arg("words"), py::call_guard<py::gil_scoped_release>(), "Writes the words of Philox.");
  module.def(
      "logistic_from_bits",
      [](const Place& place, bool float64, int64_t numel, Address words, Address noise) {
        const DeviceGuard guard(place.device);
        with_type(float64, [&](auto zero) {
          using T = decltype(zero);
          logistic_from_bits<T>({numel, array<const int64_t>(words), array<T>(noise)}, place.cuda_stream());
        });
      },
      py::kw_only(), py::arg("place"), py::arg("float64"), py::arg("numel"), py::arg("words"), py::arg("noise"),
      py::call_guard<py::gil_scoped_release>(), "Writes the noise of words.");
}

} // namespace

void bind_python(py::module_& module) {
  py::class_<Place>(module, "Place", "Device and stream of a launch.")
      .def(py::init<int, Address>(), py::arg("device"), py::arg("stream"));
  bind_gumbel_mask(module);
  bind_mask_update(module);
  bind_masked_adam(module);
  bind_noise(module);
}

} // namespace oes::cuda::mask
