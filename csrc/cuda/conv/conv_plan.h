// A sum over taps bound to its sizes: lists of taps on the device, the kernel's shape, and calls of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/conv/conv_taps.h"
#include "cuda/conv/flat_weights.h"
#include "cuda/conv/tap_sum.h"
#include "cuda/conv/weight_grad.h"
#include "cuda/core/device_array.h"

namespace oes::cuda::conv {

// What plans are made for.
struct Machine {
  int processors; // streaming multiprocessors
  int shared_bytes; // of shared memory of each
  int networks;
  Products products; // that may be used
  // Only kernels of these groups, see TapSumShape and WeightGradShape, where one fits; all for none. For tests, which
  // have small images, and for measurements.
  std::vector<int> groups = {};

  bool allows(int group) const {
    return groups.empty() || std::find(groups.begin(), groups.end(), group) != groups.end();
  }
};

// What a launch does, for the model of a step: see benchmarks/gpu_model.py.
struct LaunchWork {
  std::string kernel; // name of the template, and its arguments
  int64_t blocks, threads, shared_bytes;
  double products; // multiply-adds of all lanes, or on tensor cores of all products of 16 x 8 x 8
  double staged; // pixels read and put into shared memory by all blocks
  double outputs; // pixels that an epilogue writes
  double alone; // taps that a thread sums one after the other
  int64_t chunks; // rounds of staging of a block
};

// Weights of all lists of a program by their index into the flat vector, list after list.
template <typename T>
struct WeightTable {
  std::vector<int> index;
  std::vector<WeightSegment<T>> segments;

  // Returns where the list begins.
  int64_t add(const std::vector<int>& list, double scale) {
    const auto begin = static_cast<int64_t>(index.size());
    segments.push_back({begin, static_cast<T>(scale), nullptr, 0, 0});
    index.insert(index.end(), list.begin(), list.end());
    index.resize((index.size() + 3) / 4 * 4, -1); // so that every list is aligned to 16 bytes
    return begin;
  }
};

// What an image is and where it lies, for PlaneReader.
template <typename T>
struct Image {
  const T* y;
  const T* grad; // or nullptr
  norm::Prologue<T> prologue;
  const T* grad_numbers;
  bool shared; // by all networks
};

// How far taps reach to the right of a cell and below it, in pixels of a plane.
struct Reach {
  int rows = 0, columns = 0;
};

template <typename T>
class TapSumPlan {
 public:
  // The image read has rows x columns pixels. Adds its weights to the table.
  TapSumPlan(
      const TapSumSpec& spec, int rows, int columns, double scale, const Machine& machine, WeightTable<T>& packed);

  // `packed`: [networks, packed_stride], as the table has it. Of the epilogue only what the spec does not know.
  void run(
      const Image<T>& image, Epilogue<T> epilogue, const T* packed, int64_t packed_stride, int networks,
      cudaStream_t stream) const;

  // Partial sums of a channel that the epilogue leaves.
  int chunks() const {
    return args_.row_tiles * args_.column_tiles;
  }
  std::string description() const;
  LaunchWork work(int networks) const;

 private:
  bool choose(const TapSumSpec& spec, const Machine& machine, Products products);
  double cost(
      const TapSumSpec& spec, const TapSumArgs<T>& a, const TapSumShape& s, int64_t taps, const Machine& machine) const;
  TapSumArgs<T> tiled(const TapSumSpec& spec, const Reach& reach, int tile_rows, int tile_columns) const;

  TapSumArgs<T> args_{};
  TapSumShape shape_{};
  int groups_ = 0;
  int64_t begin_ = 0, taps_ = 0;
  double cost_ = 0; // of what was chosen
  DeviceArray<int> begins_, offsets_;
};

template <typename T>
class WeightGradPlan {
 public:
  // The image and the gradient have that many pixels. Adds its weights to the table.
  WeightGradPlan(
      const WeightGradSpec& spec, int image_rows, int image_columns, int grad_rows, int grad_columns, double scale,
      const Machine& machine, WeightTable<T>& grads);

  // Leaves the partial sums that the table's segment names.
  void run(const Image<T>& image, const Image<T>& grad, int networks, cudaStream_t stream) const;

  std::string description() const;
  LaunchWork work(int networks) const;

 private:
  WeightGradLists divide(const WeightGradSpec& spec, const StagedPlanes& planes, const Machine& machine);

  WeightGradArgs<T> args_{};
  WeightGradShape shape_{};
  bool image_is_fixed_ = false;
  int64_t taps_ = 0;
  DeviceArray<int> begins_, item_begins_, offsets_, items_;
  DeviceArray<T> partials_;
};

} // namespace oes::cuda::conv
